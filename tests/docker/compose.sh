#!/usr/bin/env bash
# The service in containers, for real and on the CPU: builds the image, trains on generated samples, and sees Prometheus
# scrape the run, and the run stopped, resumed, steered, killed, finished and called wrongly. A line a step.
#
#     tests/docker/compose.sh        needs Docker with compose, curl and python3; leaves nothing behind but the build cache
set -euo pipefail
cd "$(dirname "$0")/../.."

unset IMAGENET SHARDS RUNS RECIPE RUN SHARD_ARGS USER_ID GROUP_ID GRAFANA_PASSWORD COMPOSE_PROFILES
folder=$(mktemp -d)
export COMPOSE_PROJECT_NAME=alexnet-test-$$ COMPOSE_FILE=docker-compose.yml:docker/compose.cpu.yml COMPOSE_ENV_FILES=/dev/null
export IMAGE=alexnet-trainer:test-$$ PIP_ARGS=${PIP_ARGS:-} TOKEN_FILE=$folder/token
export TRAINER_PORT='' PROMETHEUS_PORT='' GRAFANA_PORT='' # free ones
export SAMPLE_ARGS='--train-pictures 40 --val-pictures 0'
endless='--batch-size 16 --epochs 1000000 --checkpoint-seconds 0 --log-every 100' # saves when it is told to
export TRAIN_ARGS=$endless

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { failure="$*"; exit 1; }
expect() { [[ $2 == "$3" ]] || fail "$1: $2, expected $3"; } # WHAT SEEN EXPECTED

wait_for() { # SECONDS WHAT COMMAND…: until the command succeeds
  local what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" 2>/dev/null; do
    ((SECONDS < deadline)) || fail "waited in vain for $what"
    sleep 1
  done
}

finish() {
  local status=$?
  trap - EXIT
  if ((status)); then
    docker compose ps --all || true
    docker compose logs --tail 30 || true
    say "FAILED: ${failure:-status $status}"
  fi
  docker compose down --volumes --remove-orphans --timeout 5 >/dev/null 2>&1 || true
  docker image rm --force "$IMAGE" >/dev/null 2>&1 || true
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT

inspect() { docker inspect --format "$2" "$(docker compose ps --all --quiet "$1")"; } # SERVICE TEMPLATE
up() { docker compose up --detach --quiet-pull "$@" >"$folder/up.log" 2>&1 || { cat "$folder/up.log"; fail "up $*"; }; }
healthy() { [[ $(inspect "$1" '{{.State.Health.Status}}') == healthy ]]; }
ended() { [[ $(inspect trainer '{{.State.Status}}') == exited ]]; }
scraped() { [[ -n $(docker compose exec -T prometheus promtool query instant http://localhost:9090 "$1") ]]; } # EXPRESSION
log() { docker logs "$(docker compose ps --all --quiet "$1")" 2>&1; } # SERVICE
logged() { grep --quiet "$1" <<<"$(log trainer)"; }
call() { curl --silent --show-error --fail --max-time 90 "${@:2}" "http://$(docker compose port trainer 8000)$1"; } # PATH …
status() { call /api/status | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; } # FIELD
code() { call "$1" --no-fail --output /dev/null --write-out '%{http_code}' "${@:2}"; }
trains_after() { (($(status step) > $1)); } # STEP
latest() { docker run --rm --volume "${COMPOSE_PROJECT_NAME}_runs:/runs:ro" "$IMAGE" cat "/runs/$1/checkpoints/LATEST"; } # RUN
compiled() { docker compose exec -T trainer find /cache -name '*.so' -newermt "${1:-@0}"; } # of when, all without

# Whom the containers run as must be able to read what they are given.
if ((EUID)); then
  USER_ID=$EUID GROUP_ID=$(id -g)
  export USER_ID GROUP_ID
fi
(umask 077 && python3 -c 'import secrets; print("tester:" + secrets.token_hex(32))' >"$TOKEN_FILE")
bearer="Authorization: Bearer $(cut -d: -f2 "$TOKEN_FILE")"
((EUID)) || chown -R 1000:1000 "$folder"

docker compose --progress plain build trainer >"$folder/build.log" 2>&1 || { tail -40 "$folder/build.log"; fail build; }
say "built: $(docker image inspect --format '{{.Size}}' "$IMAGE" | python3 -c 'print(round(int(input()) / 1e9, 1))') GB"

up trainer prometheus
expect "shard's status" "$(inspect shard '{{.State.ExitCode}}')" 0
say "pictures made and sharded: $(log shard | tail -1)"
wait_for 900 "samples that rise in Prometheus" scraped 'increase(trainer_samples_total{job="trainer"}[5m]) > 0'
wait_for 120 "a healthy trainer" healthy trainer
wait_for 120 "a healthy Prometheus" healthy prometheus
say "Prometheus scrapes a rising trainer_samples_total; step $(status step); both are healthy"
expect "/healthz on the published port" "$(code /healthz)" 200

for service in shard trainer prometheus; do
  facts='{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.Privileged}}'
  expect "$service's confinement" "$(inspect $service "$facts")" 'true [ALL] [no-new-privileges:true] false'
  [[ $(inspect $service '{{.Config.User}}') =~ ^[1-9] ]] || fail "$service runs as root"
  published='{{range .HostConfig.PortBindings}}{{range .}}{{.HostIp}} {{end}}{{end}}'
  [[ $(inspect $service "$published") =~ ^(127\.0\.0\.1 )*$ ]] || fail "$service is published beyond loopback"
done
for service in trainer prometheus; do
  docker compose exec -T $service sh -c '
    [ "$(id -u)" != 0 ]
    [ "$(grep -cE "^(Cap(Inh|Prm|Eff|Bnd|Amb):\s*0+|NoNewPrivs:\s*1)$" /proc/1/status)" = 6 ]
    ! touch /etc/here 2>/dev/null' || fail "$service is not confined as it should be"
done
say "not root, no capabilities, no new privileges, read-only, published on loopback alone"

expect "without a token" "$(code /api/checkpoint --request POST)" 401
saved=$(call /api/checkpoint --request POST --header "$bearer" | grep --only-matching 'step-[0-9]*' | tail -1)
expect "the newest checkpoint" "$(latest demo)" "$saved"
say "a bearer of the token has saved $saved"

started=$SECONDS
docker compose stop trainer 2>/dev/null
expect "status after a stop" "$(inspect trainer '{{.State.ExitCode}} {{.RestartCount}}')" '143 0'
saved=$(latest demo)
logged "stopped by SIGTERM at step $((10#${saved#step-})), saved" || fail "the log has no stop at $saved"
say "stopped in $((SECONDS - started)) s with status 143, saved $saved"

since=@$(date +%s)
up trainer
expect "shard the second time" "$(log shard | tail -1)" "already sharded"
wait_for 300 "steps after $saved" trains_after "$((10#${saved#step-}))"
logged "resumed from /runs/demo/checkpoints/$saved, restart 1" || fail "it has not resumed from $saved"
wait_for 120 "one restart in Prometheus" scraped 'trainer_restarts == 1 and increase(trainer_samples_total[1m]) > 0'
[[ -n $(compiled) ]] || fail "nothing was compiled into the volume"
expect "compiled by the restart" "$(compiled "$since")" ''
say "resumed at step $((10#${saved#step-})), compiled nothing anew; now step $(status step)"

docker compose exec -T trainer sh -c 'kill -KILL -1' || true
restarted() { [[ $(inspect trainer '{{.RestartCount}}') == 1 ]]; }
wait_for 60 "a restart after SIGKILL" restarted
wait_for 300 "steps after it" trains_after "$((10#${saved#step-}))"
say "killed, started again by Docker from its checkpoint; now step $(status step)"

call /api/stop --request POST --header "$bearer" --json '{"reason": "enough"}' >/dev/null
wait_for 60 "the end" ended
expect "status after a stop by the API" "$(inspect trainer '{{.State.ExitCode}} {{.RestartCount}}')" '0 1'
last=$((10#$(latest demo | cut -d- -f2) + 20))
TRAIN_ARGS="$endless --max-steps $last"
for _ in first again; do
  up trainer
  wait_for 300 "the run's end" ended
  expect "status of a finished run" "$(inspect trainer '{{.State.ExitCode}} {{.RestartCount}}')" '0 0'
done
expect "times that it said it is done" "$(log trainer | grep --count "done at step $last:")" 2
expect "the last checkpoint" "$(latest demo)" "step-$(printf %08d "$last")"
say "finished at step $last with status 0; started again it trained no more"

RUN=pair TRAIN_ARGS="--nproc-per-node 2 --no-compile $endless" up trainer
wait_for 300 "two ranks in Prometheus" scraped 'count(trainer_samples_total{job="trainer"} > 0) == 2'
docker compose stop trainer 2>/dev/null
expect "torchrun's status after a stop" "$(inspect trainer '{{.State.ExitCode}}')" 143
logged "stopped by SIGTERM at step $((10#$(latest pair | cut -d- -f2))), saved" || fail "two ranks have not saved"
say "two ranks under torchrun, each scraped; stopped with status 143, saved $(latest pair)"

TRAIN_ARGS='--no-such-flag'
up trainer
gave_up() { ended && (($(inspect trainer '{{.RestartCount}}') >= 5)); }
wait_for 300 "the end of restarts" gave_up
expect "a wrong call" "$(inspect trainer '{{.State.ExitCode}} {{.RestartCount}}')" '2 5'
say "a wrong call ended with status 2 after 5 restarts"

docker run --rm --user "${USER_ID:-1000}" --volume "$folder:/out" "$IMAGE" \
  python -m pipeline.sample /out/imagenet --train-pictures 2 --val-pictures 1 >/dev/null
TRAIN_ARGS='--batch-size 8 --max-steps 1 --no-compile'
IMAGENET=$folder/imagenet up trainer
wait_for 300 "a step of the paper's network" ended
expect "a step of the paper's network" "$(inspect trainer '{{.State.ExitCode}}') $(latest paper)" '0 step-00000001'
up trainer # without the pictures: their shards are there
wait_for 120 "the same again" ended
expect "shard without IMAGENET" "$(log shard | tail -1)" "already sharded"
expect "the same again" "$(inspect trainer '{{.State.ExitCode}}') $(latest paper)" '0 step-00000001'
say "a folder of pictures was sharded and trained the paper's network, full size"

"""What the dashboard shows of the service: rows of panels, each row the answer to a question."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import DynamicConfigValue
from panels import (
    BLUE,
    GREEN,
    RED,
    PanelBuilder,
    alarm_at,
    coloured,
    dashed,
    lines,
    listing,
    now,
    query,
    states,
    words,
)

ANSWERS: Final = words(_0=("does not answer", RED), _1=("answers", GREEN))


def devices() -> list[PanelBuilder]:
    """What are the machines doing?"""
    each = "{{instance}}"
    return [
        alarm_at(
            lines(
                "Waiting for data",
                "percentunit",
                "Share of each rank's step time. The slowest rank makes the others wait in their arithmetic.",
                query("instance:trainer_data_wait:ratio5m{RANKS}", each),
            ),
            0.2,
        ).min(0),
        lines(
            "GPU utilisation",
            "percentunit",
            "Share of time in which any kernel ran, as NVML says; none without a GPU.",
            query("trainer_gpu_utilization_ratio{RANKS}", each),
        )
        .min(0)
        .max(1),
        lines(
            "GPU temperature",
            "celsius",
            "As NVML says; none without a GPU.",
            query("trainer_gpu_temperature_celsius{RANKS}", each),
        ),
        lines(
            "Device memory",
            "bytes",
            "Of the process on its GPU: in use, most so far, and reserved by torch; 0 on a CPU.",
            query("trainer_device_memory_bytes{RANKS}", "{{instance}} {{state}}"),
            width=6,
        ).min(0),
        lines(
            "Processor cores",
            "none",
            "That each rank keeps busy, in user and system time.",
            query("rate(process_cpu_seconds_total{RANKS}[$__rate_interval])", each),
            width=6,
        ).min(0),
        lines(
            "Host memory",
            "bytes",
            "Resident in each rank's process, mapped pictures included.",
            query("process_resident_memory_bytes{RANKS}", each),
            width=6,
        ).min(0),
        lines(
            "Open files",
            "short",
            "Of each rank, and how many it may have.",
            query("process_open_fds{RANKS}", each),
            query("process_max_fds{RANKS}", "{{instance}} at most"),
            width=6,
        ).min(0),
    ]


def checkpoints() -> list[PanelBuilder]:
    """What would a crash cost?"""
    disk = lines(
        "Disk",
        "bytes",
        "Free on the file system of the run's folder; and what three checkpoints take, below which there is an alert.",
        query('max by (job) (trainer_disk_bytes{RANKS, state="free"})', "free"),
        query("3 * max by (job) (trainer_checkpoint_size_bytes{RANKS})", "three checkpoints"),
        width=12,
    )
    tries = lines(
        "Checkpoints",
        "short",
        "Begun, and failed, in each interval of the graph; old ones that cannot be removed now.",
        query("sum by (job) (increase(trainer_checkpoint_attempts_total{RANKS}[$__rate_interval]))", "begun"),
        query("sum by (job) (increase(trainer_checkpoint_failures_total{RANKS}[$__rate_interval]))", "failed"),
        query("max by (job) (trainer_checkpoints_unremoved{RANKS})", "not removed"),
        width=12,
    )
    return [
        alarm_at(
            lines(
                "Work that is not saved",
                "s",
                "Time since the last checkpoint, or since the start: what a crash would cost now.",
                query("job:trainer_unsaved:seconds{RUN}"),
            ),
            7200,
        ).min(0),
        lines(
            "Time to write a checkpoint",
            "s",
            "The last one, beside the training loop. It must stay below what a stop may take.",
            query("max by (job) (trainer_checkpoint_duration_seconds{RANKS})"),
        ).min(0),
        lines(
            "Size of a checkpoint",
            "bytes",
            "The last one.",
            query("max by (job) (trainer_checkpoint_size_bytes{RANKS})"),
        ).min(0),
        coloured(tries, {"begun": GREEN, "failed": RED}).min(0),
        coloured(dashed(disk, "B", RED), {"free": BLUE}).min(0),
    ]


def happenings() -> list[PanelBuilder]:
    """What happened to it?"""
    events = "max by (kind, step, author, reason, change) (trainer_event_timestamp_seconds{RANKS}) * 1000"
    columns = {
        "Value": "Time",
        "kind": "Act",
        "step": "Step",
        "author": "By",
        "reason": "Reason",
        "change": "Learning rate",
    }
    table = listing(
        "Events",
        "The latest acts upon the run, an operator's and its own.",
        now(events),
        columns,
        width=24,
        height=8,
        none="None yet",
        sort="Time",
    )
    return [
        table.override_by_name("Time", [DynamicConfigValue("unit", "dateTimeAsIso")]),
        lines(
            "Starts",
            "short",
            "Of the process within an hour, and those of them that went on from a new checkpoint, over the whole run.",
            query("max by (job) (changes(process_start_time_seconds{RANKS}[1h]))", "starts within an hour"),
            query("max by (job) (trainer_restarts{RANKS})", "resumes so far"),
            width=6,
        ).min(0),
        lines(
            "Samples replaced",
            "short",
            "Pictures within an hour for which another stood in, by reason.",
            query("sum by (reason) (increase(trainer_samples_replaced_total{RANKS}[1h]))", "{{reason}}"),
            width=6,
        ).min(0),
        lines(
            "Steps that were not finite",
            "short",
            "Within an hour. The run ends at the first.",
            query("max by (job) (increase(trainer_nonfinite_steps_total{RANKS}[1h]))"),
            width=6,
        ).min(0),
        lines(
            "Writes that failed",
            "short",
            "Within an hour: lines of log and events wait for room, those for the console are lost.",
            query("max by (to) (increase(trainer_failed_writes_total{RANKS}[1h]))", "{{to}}"),
            width=6,
        ).min(0),
    ]


def scrapes() -> list[PanelBuilder]:
    """Can these figures be trusted?"""
    return [
        states("Ranks", "Whether each answers Prometheus.", ANSWERS, query("up{RANKS}", "{{instance}}"), height=7),
        lines(
            "Time of a scrape",
            "s",
            "Prometheus gives up after five seconds.",
            query("scrape_duration_seconds{RANKS}", "{{instance}}"),
            width=6,
            height=7,
        ).min(0),
        lines(
            "Series",
            "short",
            "That each rank exposes.",
            query("scrape_samples_scraped{RANKS}", "{{instance}}"),
            width=6,
            height=7,
        ).min(0),
    ]

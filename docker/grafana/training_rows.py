"""What the dashboard shows of the training: rows of panels, each row the answer to a question."""

from typing import Final

from grafana_foundation_sdk.models.common import LineInterpolation
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue
from panels import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    PanelBuilder,
    coloured,
    dashed,
    heat,
    lines,
    listing,
    log_scale,
    now,
    number,
    query,
    stacked,
    states,
    steps,
    words,
)

STATES: Final = words(
    _0=("down", RED),
    _1=("starting or validating", BLUE),
    _2=("training", GREEN),
    _3=("paused", YELLOW),
    _4=("stalled", ORANGE),
    _5=("over", PURPLE),
)
SEVERITIES: Final = words(critical=("critical", RED), warning=("warning", ORANGE), info=("info", BLUE))


def overview() -> list[PanelBuilder]:
    """How is it going?"""
    wait = steps((None, GREEN), (0.1, YELLOW), (0.2, RED))
    state = number("State", "string", "What the run is about.", now("job:trainer_state:code{RUN}"), none="unknown")
    return [
        state.mappings([STATES]),
        number(
            "Done",
            "percentunit",
            "Share of the run's steps that are done.",
            query("max by (job) (trainer_progress_ratio{RANKS})"),
            sparkline=True,
            thresholds=steps((None, BLUE)),
        )
        .min(0)
        .max(1)
        .decimals(1),
        number(
            "Time left",
            "s",
            "At the last hour's speed, with its validations, saves and pauses.",
            now(
                "(1 - max by (job) (trainer_progress_ratio{RANKS}))"
                " / (max by (job) (deriv(trainer_progress_ratio{RANKS}[1h])) > 0)"
            ),
        ).decimals(1),
        number(
            "Pictures a second",
            "short",
            "Trained on, over all ranks.",
            query("sum by (job) (rate(trainer_samples_total{RANKS}[$__rate_interval]))"),
            sparkline=True,
            thresholds=steps((None, GREEN)),
        ),
        number(
            "Waiting for data",
            "percentunit",
            "Share of step time, of the rank that waits longest. More than 20% for a quarter of an hour is an alert.",
            query("max by (job) (trainer_data_wait_ratio{RANKS})"),
            sparkline=True,
            thresholds=wait,
        )
        .min(0)
        .decimals(1),
        number(
            "Model FLOP utilisation",
            "percentunit",
            "Arithmetic of training over what the devices could do, as stated by --peak-tflops.",
            query("avg by (job) (trainer_mfu_ratio{RANKS})"),
            sparkline=True,
            none="no peak stated",
        )
        .min(0)
        .decimals(1),
        states(
            "What the run was about",
            "Events are marked on every graph.",
            STATES,
            query("job:trainer_state:code{RUN}"),
            width=16,
        ),
        listing(
            "Alerts",
            "Firing now. docs/operations.md says what each means and what to do.",
            now('max by (alertname, severity, job) (ALERTS{RUN, alertstate="firing"})'),
            {"alertname": "Alert", "severity": "Severity", "job": "Run"},
            width=8,
            height=5,
            none="No alert",
            sort="Severity",
        ).override_by_name(
            "Severity",
            [
                DynamicConfigValue("mappings", [SEVERITIES]),
                DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ],
        ),
    ]


def learning() -> list[PanelBuilder]:
    """Does it learn?"""
    loss = lines(
        "Training loss",
        "none",
        "Of the last step before each scrape, thin; its mean over five minutes, bold.",
        query("avg by (job) (avg_over_time(trainer_loss{RANKS}[5m]))", "mean of 5 minutes"),
        query("max by (job) (trainer_loss{RANKS})", "last step"),
        width=12,
        height=9,
    )
    quiet = [DynamicConfigValue("custom.lineWidth", 1), DynamicConfigValue("custom.fillOpacity", 0)]
    errors = lines(
        "Validation error",
        "percentunit",
        "After each epoch: the share of pictures whose class is not the first guess, and not among the first five.",
        query("max by (job, top) (trainer_validation_error_ratio{RANKS})", "top-{{top}}"),
        width=12,
        height=9,
    )
    return [
        coloured(loss.override_by_query("B", quiet), {"mean of 5 minutes": BLUE, "last step": "light-blue"}),
        coloured(errors.min(0).line_interpolation(LineInterpolation.STEP_AFTER), {"top-1": ORANGE, "top-5": BLUE}),
        log_scale(
            lines(
                "Learning rate",
                "sci",
                "Of convolution and fully connected weights alike. Its changes are marked, with who made them and why.",
                query("max by (job) (trainer_learning_rate{RANKS})"),
                width=12,
                height=7,
            ).line_interpolation(LineInterpolation.STEP_AFTER)
        ),
        log_scale(
            lines(
                "Gradient norm",
                "none",
                "L2 norm over all weights, of the last step before each scrape. A rise over days is a warning.",
                query("max by (job) (trainer_gradient_norm{RANKS})"),
                width=12,
                height=7,
            )
        ),
    ]


def speed() -> list[PanelBuilder]:
    """How fast, and where does the time go?"""
    rate = lines(
        "Pictures a second",
        "short",
        "Over all ranks, validation and saves included; and while stepping, which the alert compares with its own day.",
        query("sum by (job) (rate(trainer_samples_total{RANKS}[$__rate_interval]))", "all in all"),
        query("max by (job) (job_started:trainer_pace:rate5m{RUN})", "while stepping"),
        query("0.7 * max by (job) (job_started:trainer_pace:median1d{RUN})", "alert below"),
        width=12,
    )
    phases = lines(
        "Where the time goes",
        "percentunit",
        "Mean over the ranks. What is missing to 100% is validation, compiling and pauses.",
        query("avg by (phase) (rate(trainer_step_seconds_sum{RANKS}[$__rate_interval]))", "{{phase}}"),
        width=12,
    )
    quantiles = lines(
        "Step time, median and 95th percentile",
        "s",
        "By phase, over five minutes, between the limits of the histogram's buckets.",
        query("job_phase:trainer_step_seconds:p50_5m{RUN}", "{{phase}} median"),
        query("job_phase:trainer_step_seconds:p95_5m{RUN}", "{{phase}} 95%"),
        width=12,
    )
    return [
        coloured(dashed(rate, "C", RED), {"all in all": GREEN, "while stepping": BLUE}).min(0),
        coloured(stacked(phases), {"compute": GREEN, "data_wait": ORANGE, "checkpoint_copy": PURPLE}).min(0).max(1),
        heat(
            "Time of a step's arithmetic",
            "s",
            "Steps a second in each bucket. Two bands are two kinds of steps, a smear is another load on the machine.",
            query(
                'sum by (le) (rate(trainer_step_seconds_bucket{RANKS, phase="compute"}[$__rate_interval]))', "{{le}}"
            ),
        ),
        log_scale(quantiles),
    ]

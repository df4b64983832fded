"""The panels that the dashboard is made of: each with a unit, a description and queries of the chosen run and ranks."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    BigValueColorMode,
    BigValueGraphMode,
    FieldTextAlignment,
    GraphGradientMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
RUN: Final = 'job=~"$job"'
RANKS: Final = f'{RUN}, instance=~"$instance"'

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "text"

PanelBuilder = Builder[Panel]
Styled = TypeVar("Styled", stat.Panel, timeseries.Panel, statetimeline.Panel, heatmap.Panel, table.Panel)


def query(expression: str, legend: str = "{{job}}") -> Dataquery:
    """A query over the shown time. RUN and RANKS in it stand for the chosen jobs, and for their chosen instances."""
    expr = expression.replace("RUN", RUN).replace("RANKS", RANKS)
    return Dataquery().expr(expr).legend_format(legend).range().datasource(SOURCE)


def now(expression: str, legend: str = "{{job}}") -> Dataquery:
    """A query of the last moment alone."""
    return query(expression, legend).instant()


def placed(
    panel: Styled, title: str, description: str, width: int, height: int, queries: Sequence[Dataquery]
) -> Styled:
    """What all panels have; queries are called A, B, C in their order."""
    panel.title(title).description(description).span(width).height(height).datasource(SOURCE)
    for number, each in enumerate(queries):
        panel.with_target(each.ref_id(chr(ord("A") + number)))
    return panel


def steps(*colours: tuple[float | None, str]) -> ThresholdsConfig:
    """Colours from values on; None: from the lowest."""
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps([Threshold(v, colour) for v, colour in colours])


def words(**meanings: tuple[str, str]) -> ValueMap:
    """Text and colour of values, each named by _ and its number or by itself."""
    options = {
        value.removeprefix("_"): ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(meanings.items())
    }
    return ValueMap(options)


def unknown(text: str) -> SpecialValueMap:
    """What to say of NaN and of nothing."""
    result = ValueMappingResult(text=text, color=GREY, index=0)
    return SpecialValueMap(DashboardSpecialValueMapOptions(SpecialValueMatch.NULL_AND_NAN, result))


def number(
    title: str,
    unit: str,
    description: str,
    *queries: Dataquery,
    width: int = 4,
    thresholds: ThresholdsConfig | None = None,
    sparkline: bool = False,
    none: str = "–",
) -> stat.Panel:
    """A value in large print; none: what stands there when there is none."""
    panel = placed(stat.Panel(), title, description, width, 4, queries)
    panel.unit(unit).no_value(none).mappings([unknown(none)])
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.graph_mode(BigValueGraphMode.AREA if sparkline else BigValueGraphMode.NONE)
    panel.color_mode(BigValueColorMode.VALUE).thresholds(thresholds or steps((None, GREY)))
    return panel.color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))


def lines(
    title: str,
    unit: str,
    description: str,
    *queries: Dataquery,
    width: int = 8,
    height: int = 8,
    calcs: Sequence[str] = ("lastNotNull",),
) -> timeseries.Panel:
    """Values over time."""
    panel = placed(timeseries.Panel(), title, description, width, height, queries)
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel.legend(legend.show_legend(True).calcs(list(calcs)))
    panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    panel.unit(unit).line_width(2).fill_opacity(8).gradient_mode(GraphGradientMode.OPACITY)
    panel.show_points(VisibilityMode.NEVER).line_interpolation(LineInterpolation.LINEAR)
    return panel.color_scheme(FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))


def log_scale(panel: timeseries.Panel) -> timeseries.Panel:
    """With equal ratios equally far apart."""
    return panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Added up."""
    stacking = common.StackingConfig().mode(StackingMode.NORMAL).group("A")
    return panel.stacking(stacking).fill_opacity(60).line_width(1).gradient_mode(GraphGradientMode.NONE)


def alarm_at(panel: timeseries.Panel, value: float) -> timeseries.Panel:
    """With a dashed line where an alert begins."""
    style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(steps((None, "transparent"), (value, RED))).thresholds_style(style)


def coloured(panel: timeseries.Panel, colours: Mapping[str, str]) -> timeseries.Panel:
    """Series by what the legend calls them."""
    for name, colour in colours.items():
        value = {"mode": FieldColorModeId.FIXED, "fixedColor": colour}
        panel.override_by_name(name, [DynamicConfigValue("color", value)])
    return panel


def dashed(panel: timeseries.Panel, letter: str, colour: str) -> timeseries.Panel:
    """A query's line thin, dashed and without a fill."""
    values: dict[str, Any] = {
        "custom.lineStyle": {"fill": "dash", "dash": [8, 8]},
        "custom.lineWidth": 1,
        "custom.fillOpacity": 0,
        "color": {"mode": FieldColorModeId.FIXED, "fixedColor": colour},
    }
    return panel.override_by_query(letter, [DynamicConfigValue(name, value) for name, value in values.items()])


def states(
    title: str, description: str, meanings: ValueMap, *queries: Dataquery, width: int = 12, height: int = 5
) -> statetimeline.Panel:
    """What was when, in words."""
    panel = placed(statetimeline.Panel(), title, description, width, height, queries)
    panel.mappings([meanings]).merge_values(True).show_value(VisibilityMode.AUTO).row_height(0.8).fill_opacity(80)
    panel.legend(common.VizLegendOptions().show_legend(False).display_mode(LegendDisplayMode.HIDDEN).calcs([]))
    return (
        panel.unit("string")
        .color_scheme(FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, GREY)))
    )


def heat(
    title: str, unit: str, description: str, buckets: Dataquery, width: int = 12, height: int = 8
) -> heatmap.Panel:
    """A histogram over time."""
    panel = placed(heatmap.Panel(), title, description, width, height, [buckets.format(PromQueryFormat.HEATMAP)])
    panel.calculate(False).unit(unit).cell_values(heatmap.CellValues().unit("short"))
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(AxisPlacement.LEFT)).show_legend()
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).exponent(0.5)
    panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR))
    return panel.color(colours).mode(TooltipDisplayMode.SINGLE).cell_gap(1)


def listing(
    title: str,
    description: str,
    moment: Dataquery,
    columns: dict[str, str],
    *,
    width: int,
    height: int,
    none: str,
    sort: str,
) -> table.Panel:
    """A table of a query's labels; columns: the heading of each, in their order; Value is the query's own."""
    panel = placed(table.Panel(), title, description, width, height, [moment.format(PromQueryFormat.TABLE)])
    order: dict[str, Any] = {
        "excludeByName": {"Time": True} | ({} if "Value" in columns else {"Value": True}),
        "indexByName": {name: index for index, name in enumerate(columns)},
        "renameByName": columns,
    }
    panel.with_transformation(DataTransformerConfig(id_val="organize", options=order))
    panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel.unit("string").no_value(none).show_header(True).align(FieldTextAlignment.LEFT)

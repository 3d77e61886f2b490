"""Template variables that every board has, named as on vLLM's own boards, so that panels can move between them."""

from deploy.dashboards.panels import datasource_variable, label_variable

SELECTION = (
    datasource_variable(),
    label_variable("model_name", "Model", "label_values(dfmr_cache_bytes, model_name)"),
    label_variable("instance", "Instance", 'label_values(dfmr_cache_bytes{model_name=~"$model_name"}, instance)'),
)
"""``dfmr_cache_bytes`` is there from the start of the server, before any request."""

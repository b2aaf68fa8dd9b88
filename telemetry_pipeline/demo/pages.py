"""The pages of the demo's product: what can be seen, filtered and charted on each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page. `visits` is its share of page views, relative to the other pages' shares.

    `features` holds (feature, surface), `filters` (view, filter key), `charts` (chart, surface).
    `boundary` names the error boundary that would catch an error there.
    """

    route: str
    visits: float
    boundary: str
    features: tuple[tuple[str, str], ...]
    filters: tuple[tuple[str, str], ...] = ()
    charts: tuple[tuple[str, str], ...] = ()
    needs_change_requests: bool = False


PAGES = (
    Page(
        route="/personal-dashboard",
        visits=9,
        boundary="dashboard",
        features=(("my_flags", "dashboard"), ("recent_activity", "dashboard")),
        charts=(("flag_usage", "dashboard"),),
    ),
    Page(
        route="/projects",
        visits=14,
        boundary="project_list",
        features=(("project_list", "page"), ("project_create", "modal")),
        filters=(("project_list", "owner"), ("project_list", "favourite")),
    ),
    Page(
        route="/projects/:projectId/features",
        visits=24,
        boundary="feature_table",
        features=(("feature_list", "page"), ("feature_create", "modal"), ("bulk_actions", "page")),
        filters=(
            ("feature_list", "environment"),
            ("feature_list", "tag"),
            ("feature_list", "flag_type"),
            ("feature_list", "lifecycle"),
        ),
    ),
    Page(
        route="/projects/:projectId/features/:featureName",
        visits=21,
        boundary="feature_details",
        features=(
            ("feature_details", "page"),
            ("strategy_editor", "sidebar"),
            ("variant_editor", "modal"),
            ("feature_metrics", "page"),
        ),
        charts=(("flag_exposure", "page"), ("flag_usage", "page")),
    ),
    Page(
        route="/projects/:projectId/change-requests",
        visits=8,
        boundary="change_request_list",
        features=(("change_request_list", "page"), ("change_request_review", "sidebar")),
        filters=(("change_request_list", "state"), ("change_request_list", "author")),
        needs_change_requests=True,
    ),
    Page(
        route="/projects/:projectId/insights",
        visits=7,
        boundary="project_insights",
        features=(("project_insights", "page"),),
        charts=(("lead_time", "dashboard"), ("flag_health", "dashboard")),
    ),
    Page(
        route="/insights",
        visits=5,
        boundary="insights",
        features=(("insights", "dashboard"),),
        filters=(("insights", "project"), ("insights", "period")),
        charts=(("flags_over_time", "dashboard"), ("users_over_time", "dashboard")),
    ),
    Page(
        route="/audit-log",
        visits=5,
        boundary="audit_log",
        features=(("audit_log", "page"),),
        filters=(("audit_log", "actor"), ("audit_log", "event_type"), ("audit_log", "period")),
    ),
    Page(
        route="/segments",
        visits=3,
        boundary="segment_list",
        features=(("segment_list", "page"), ("segment_editor", "modal")),
        filters=(("segment_list", "project"),),
    ),
    Page(
        route="/admin/users",
        visits=2,
        boundary="user_admin",
        features=(("user_list", "page"), ("user_invite", "modal")),
    ),
    Page(
        route="/admin/api-tokens",
        visits=2,
        boundary="token_admin",
        features=(("token_list", "page"), ("token_create", "modal")),
    ),
)

//! The page on the board and the JSON API behind it, at the address of metrics and health.
//!
//! Nothing is asked of the message loop: the API reads figures, reports and alerts that the loop leaves here, and the database by
//! a connection of its own.

mod access;
mod alert_api;
mod alerts;
mod answer;
mod api;
mod assets;
mod charts;
mod live;
mod mutes;
mod remembered;
mod traces;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;

use crate::telemetry::Health;
use access::Access;
use alerts::Alerts;
use charts::Charts;
use live::Views;
use mutes::Mutes;
use remembered::Remembered;
use sedge_core::board::{FollowedRun, Input, Mute};
use sedge_core::config::Config;
use sedge_core::finding::Finding;
use sedge_core::metrics::Metrics;
use sedge_core::store::StoredRecord;
use sedge_core::time::Now;
use sedge_core::trace::Span;
use traces::Traces;

const MINUTE: Duration = Duration::from_secs(60);
/// Minutes after which the page's memory is written, if it changed.
const SAVE_EVERY: u32 = 10;

/// What the message loop leaves for the page.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Last report of each function, as it is published.
    reports: Reports,
    alerts: Arc<Alerts>,
    mutes: Arc<Mutes>,
    views: Views,
    traces: Arc<Traces>,
}

impl Shown {
    pub(crate) fn new(config: &Config) -> Self {
        let prefix = format!("{}/{}/alerts/", config.node.base_topic, config.node.name);
        let mutes = Arc::new(Mutes::load(&config.node.data_dir));
        Self {
            reports: Reports::default(),
            alerts: Arc::new(Alerts::new(prefix)),
            mutes,
            views: Views::default(),
            traces: Arc::default(),
        }
    }

    /// Keeps the report of a function. An empty one removes an earlier one.
    pub(crate) fn report(&self, function: Arc<str>, report: Bytes) {
        self.reports.set(function, report);
    }

    /// Notes the alerts among records that are on disk.
    pub(crate) fn committed(&self, stored: &[StoredRecord]) {
        self.alerts.note(stored);
    }

    /// Shows a run to those who watch it.
    pub(crate) fn run(&self, run: FollowedRun) {
        self.views.show(run);
    }

    /// Keeps spans that have ended.
    pub(crate) fn traced(&self, spans: Vec<Span>) {
        self.traces.add(spans);
    }

    /// The alerts that are muted.
    pub(crate) fn mutes(&self, now: Now) -> Vec<Mute> {
        self.mutes.for_board(now)
    }

    /// What somebody asks the board for.
    pub(crate) async fn asked(&self) -> Input {
        tokio::select! {
            follows = self.views.changed() => Input::Follow(follows),
            mutes = self.mutes.changed() => Input::Mute(mutes),
        }
    }
}

/// Last report of each function.
#[derive(Clone, Debug, Default)]
struct Reports(Arc<Mutex<BTreeMap<Arc<str>, Bytes>>>);

impl Reports {
    fn set(&self, function: Arc<str>, report: Bytes) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if report.is_empty() {
            reports.remove(&function)
        } else {
            reports.insert(function, report)
        };
    }

    fn all(&self) -> BTreeMap<Arc<str>, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) struct Page {
    access: Access,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    shown: Shown,
    charts: Charts,
    /// What the daemon is configured to.
    config: Config,
    /// Findings of the last look.
    checks: Mutex<Vec<Finding>>,
    /// Held while the memory is written.
    saving: Mutex<()>,
}

impl Page {
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>, health: Arc<Health>, shown: Shown) -> Arc<Self> {
        let charts = Charts::default();
        if let Some(Remembered { at_ms, alerts, charts: series }) = remembered::load(&config.node.data_dir) {
            shown.alerts.restore(alerts);
            // A clock that has gone back says nothing about the time that passed.
            if let Some(passed_ms) = now().unix_ms.checked_sub(at_ms) {
                charts.restore(series, passed_ms / 60_000);
            }
        }
        Arc::new(Self {
            access: Access::new(&config.node.data_dir, config.http.hosts.clone()),
            metrics,
            health,
            shown,
            charts,
            config: config.clone(),
            checks: Mutex::new(checks(config)),
            saving: Mutex::new(()),
        })
    }

    /// Counts by the minute and writes what is to be remembered, for as long as the server runs.
    pub(crate) async fn count(&self) {
        let mut saved = self.shown.alerts.changes();
        for minute in (1..=SAVE_EVERY).cycle() {
            tokio::time::sleep(MINUTE).await;
            *self.checks.lock().unwrap_or_else(PoisonError::into_inner) = checks(&self.config);
            let has_counted = self.charts.minute(&self.metrics, now());
            if minute == SAVE_EVERY && (has_counted || self.shown.alerts.changes() != saved) {
                saved = self.shown.alerts.changes();
                self.save();
            }
        }
    }

    /// Writes what is to be remembered.
    pub(crate) fn save(&self) {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered =
            Remembered { at_ms: now().unix_ms, alerts: self.shown.alerts.kept(), charts: self.charts.series() };
        remembered::save(self.data_dir(), &remembered);
    }

    fn data_dir(&self) -> &Path {
        &self.config.node.data_dir
    }
}

/// What `sedge doctor` would find, without writing to the disk.
fn checks(config: &Config) -> Vec<Finding> {
    sedge_store::checks::inspect(config, sedge_sandbox::sandboxing::has_filter())
}

/// Time of a request: the top of the HTTP thread's loop.
pub(crate) fn now() -> Now {
    Now::at(Instant::now(), std::time::SystemTime::now(), sedge_sandbox::clock::clock_synced())
}

/// For this machine, or whoever has an account on it: counts and states need no token.
pub(crate) fn router(page: &Arc<Page>) -> Router {
    guarded(page, routes(page))
}

/// For other machines, with more routes: everything but the files of the page needs a token.
pub(crate) fn with_tokens(page: &Arc<Page>, more: Router) -> Router {
    let routes = routes(page).merge(more);
    guarded(page, routes.layer(middleware::from_fn_with_state(Arc::clone(page), need_token)))
}

fn guarded(page: &Arc<Page>, routes: Router) -> Router {
    routes.layer(middleware::from_fn_with_state(Arc::clone(page), guard))
}

fn routes(page: &Arc<Page>) -> Router {
    Router::new()
        .route("/", get(assets::index))
        .route("/page/{file}", get(assets::file))
        .route("/api/v1/board", get(api::board))
        .route("/api/v1/functions", get(api::functions))
        .route("/api/v1/functions/{name}/state", get(api::scopes))
        .route("/api/v1/functions/{name}/state/entries", get(api::entries))
        .route("/api/v1/alerts", get(alert_api::alerts))
        .route("/api/v1/alerts/acknowledge", post(alert_api::acknowledge))
        .route("/api/v1/alerts/mute", post(alert_api::mute))
        .route("/api/v1/alerts/unmute", post(alert_api::unmute))
        .route("/api/v1/live", get(live::live))
        .route("/api/v1/traces", get(traces::list))
        .route("/api/v1/traces/{id}", get(traces::one))
        .route("/api/v1/dead-letters", get(api::dead_letters))
        .route("/api/v1/dead-letters/{id}", get(api::dead_letter))
        .route("/api/v1/dead-letters/replay", post(api::replay))
        .route("/api/v1/dead-letters/drop", post(api::drop))
        .route("/api/v1/openapi.json", get(assets::openapi))
        .with_state(Arc::clone(page))
}

async fn need_token(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == "/" || path.starts_with("/page/") {
        return next.run(request).await;
    }
    match page.access.person(request.headers(), Instant::now()) {
        Ok(_) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses requests under foreign names, and tells the browser what the page may do.
async fn guard(State(page): State<Arc<Page>>, request: Request, next: Next) -> Response {
    let mut response = match page.access.check_host(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

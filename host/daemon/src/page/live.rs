//! Runs as they happen, as server-sent events.
//!
//! ```text
//! open: Views ─▶ loop ─▶ Input::Follow           Effect::Follow ─▶ Views::show ─▶ a bounded queue ─▶ browser
//! ```
//!
//! The loop never waits: what a queue has no room for is counted as left out. A browser that stops reading is cut off by the
//! bound on its connection.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::unfold;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::Page;
use super::answer::Refusal;
use crate::telemetry::Lease;
use sedge_core::board::{Follow, FollowedRun, MAX_FOLLOWS};
use sedge_core::topic::TopicFilter;

/// Runs that wait for a browser.
const MAX_WAITING: usize = 16;
/// The number of runs left out is told this often. A stream that is not idle for longer shows that it stands.
const BEAT: Duration = Duration::from_secs(2);

/// The open views, between this thread and the message loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Views(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Vec<Open>>,
    next: AtomicU32,
    changed: Notify,
}

#[derive(Debug)]
struct Open {
    follow: Follow,
    runs: mpsc::Sender<Arc<FollowedRun>>,
}

/// The receiving end of a view. Dropping it closes the view.
struct View {
    views: Views,
    id: u32,
    runs: mpsc::Receiver<Arc<FollowedRun>>,
    left_out: Arc<AtomicU64>,
}

impl Views {
    /// What the board is to follow, once that has changed.
    pub(crate) async fn changed(&self) -> Vec<Follow> {
        self.0.changed.notified().await;
        self.lock().iter().map(|open| open.follow.clone()).collect()
    }

    /// Hands a run to the views that it is for, as far as they have room.
    pub(crate) fn show(&self, run: FollowedRun) {
        let run = Arc::new(run);
        for Open { follow, runs } in self.lock().iter().filter(|open| run.follows.contains(&open.follow.id)) {
            if runs.try_send(Arc::clone(&run)).is_err() {
                follow.left_out.fetch_add(1, Relaxed);
            }
        }
    }

    /// `None`: too many are open.
    fn open(&self, function: Option<Arc<str>>, topic: Option<TopicFilter>) -> Option<View> {
        let mut open = self.lock();
        if open.len() >= MAX_FOLLOWS {
            return None;
        }
        let (id, left_out) = (self.0.next.fetch_add(1, Relaxed), Arc::new(AtomicU64::new(0)));
        let (sender, runs) = mpsc::channel(MAX_WAITING);
        let follow = Follow { id, function, topic, left_out: Arc::clone(&left_out) };
        open.push(Open { follow, runs: sender });
        self.0.changed.notify_one();
        Some(View { views: self.clone(), id, runs, left_out })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.views.lock().retain(|open| open.follow.id != self.id);
        self.views.0.changed.notify_one();
    }
}

#[derive(Deserialize)]
pub(super) struct LiveQuery {
    function: Option<String>,
    topic: Option<String>,
}

/// Runs of a function, or for topics, for as long as the browser reads.
pub(super) async fn live(
    State(page): State<Arc<Page>>,
    Query(query): Query<LiveQuery>,
    ConnectInfo(lease): ConnectInfo<Lease>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    page.access.person(&headers, std::time::Instant::now())?;
    let topic = query.topic.filter(|topic| !topic.is_empty()).map(|topic| TopicFilter::parse(&topic)).transpose();
    let topic = topic.map_err(|error| {
        let fix = "write a topic filter such as oven/+/temperature or oven/#";
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, format!("topic: {error}"), fix)
    })?;
    let function = query.function.filter(|name| !name.is_empty()).map(Into::into);
    let Some(view) = page.shown.views.open(function, topic) else {
        let error = format!("{MAX_FOLLOWS} live views are open, which is the most");
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error, "close one of them"));
    };
    lease.stream();
    let feed = Feed { page: Arc::clone(&page), headers, view, beat: Instant::now(), has_ended: false };
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(unfold(feed, Feed::next))).into_response())
}

struct Feed {
    page: Arc<Page>,
    /// With the token, which may be withdrawn.
    headers: HeaderMap,
    view: View,
    beat: Instant,
    has_ended: bool,
}

impl Feed {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.has_ended {
            return None;
        }
        let mut events = String::new();
        tokio::select! {
            run = self.view.runs.recv() => add_event(&mut events, "run", &run?.to_json()),
            () = sleep_until(self.beat) => {
                self.beat = Instant::now() + BEAT;
                match self.page.access.person(&self.headers, std::time::Instant::now()) {
                    Ok(_) => {
                        let left_out = self.view.left_out.load(Relaxed);
                        add_event(&mut events, "left-out", &json!({ "left_out": left_out }));
                    }
                    Err(refusal) => {
                        add_event(&mut events, "end", &refusal.to_json());
                        self.has_ended = true;
                    }
                }
            }
        }
        // What else is there goes with it.
        while let Ok(run) = self.view.runs.try_recv() {
            add_event(&mut events, "run", &run.to_json());
        }
        Some((Ok(events.into()), self))
    }
}

/// JSON has no ends of lines outside of strings, and escapes those within.
fn add_event(events: &mut String, name: &str, data: &Value) {
    events.push_str(&format!("event: {name}\ndata: {data}\n\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(views: &Views) -> usize {
        views.lock().len()
    }

    #[test]
    fn views_are_bounded_and_closed_ones_make_room() {
        let views = Views::default();
        let mut open: Vec<_> = (0..MAX_FOLLOWS).map(|_| views.open(None, None).unwrap()).collect();
        assert!(views.open(None, None).is_none());
        open.pop();
        assert_eq!(count(&views), MAX_FOLLOWS - 1);
        let again = views.open(Some("f".into()), None).unwrap();
        assert!(open.iter().all(|view| view.id != again.id), "a late run of a closed view is for nobody");
    }
}

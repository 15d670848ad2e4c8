//! The files of the page, which are part of the program.

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const ICON: &str = "image/svg+xml";

const FILES: [(&str, &str, &str); 11] = [
    ("app.js", SCRIPT, include_str!("assets/app.js")),
    ("strings.js", SCRIPT, include_str!("assets/strings.js")),
    ("dom.js", SCRIPT, include_str!("assets/dom.js")),
    ("board.js", SCRIPT, include_str!("assets/board.js")),
    ("functions.js", SCRIPT, include_str!("assets/functions.js")),
    ("alerts.js", SCRIPT, include_str!("assets/alerts.js")),
    ("dead-letters.js", SCRIPT, include_str!("assets/dead-letters.js")),
    ("live.js", SCRIPT, include_str!("assets/live.js")),
    ("traces.js", SCRIPT, include_str!("assets/traces.js")),
    ("style.css", STYLE, include_str!("assets/style.css")),
    ("icon.svg", ICON, include_str!("assets/icon.svg")),
];

/// The page for a browser, and a line of text for other programs.
pub(super) async fn index(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("");
    if !accepts.contains("text/html") {
        return crate::telemetry::INDEX.into_response();
    }
    ([(header::CONTENT_TYPE, HTML)], include_str!("assets/index.html")).into_response()
}

pub(super) async fn file(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, *kind)], *text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../../../docs/openapi.json")).into_response()
}

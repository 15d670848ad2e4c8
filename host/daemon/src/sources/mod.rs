//! What delivers messages beside the broker.

#[cfg(feature = "http-trigger")]
pub(crate) mod http;
#[cfg(not(feature = "http-trigger"))]
#[path = "without_http.rs"]
pub(crate) mod http;

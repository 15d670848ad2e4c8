//! Worker processes, which run functions. A worker has no keys, no network and no files. It inherits one socket for jobs
//! and outcomes, and one that passes compiled code.
//!
//! ```text
//! daemon                                                    worker (sandboxing)
//!   processes ──jobs, state──▶ socket pair ──▶ serve ──▶ functions (sandbox)
//!             ◀──outcomes, requests for state──
//! ```

pub mod clock;
pub(crate) mod processes;
pub(crate) mod protocol;
pub mod serve;

mod cache;

//! The processes around the sandbox. A worker holds no keys, no network and no files: it inherits one socket, takes
//! jobs from it and returns outcomes.
//!
//! ```text
//! daemon  pool ──jobs, state──▶ socket pair ──▶ serve ── sandbox     worker
//!              ◀──outcomes, questions──                 wall around all of it
//! ```

mod bounds;
pub mod codes;
pub mod permits;
pub mod pool;
pub mod protocol;
pub mod sandboxing;
pub mod serve;

mod cache;

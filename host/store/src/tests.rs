//! Tests of the store as the daemon sees it.

mod damage;
mod model;
mod other_process;
mod outbox;
mod testing;
mod window;

//! Tests of the store as the daemon sees it.

mod damage;
mod fair;
mod faults;
mod history;
mod model;
mod other_process;
mod outbox;
mod sinks;
mod testing;
mod thin;
mod vfs;
mod window;
mod witness;

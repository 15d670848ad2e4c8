//! The store as the daemon sees it, against a model, and with what can happen to its files.

mod damage;
mod model;
mod other_process;
mod outbox;
mod testing;
mod window;

//! Publishes its clocks and a random number: `<unix ms> <nanoseconds passed> <random>`.

#![no_std]

extern crate alloc;

use alloc::vec;

use sedge_function::{Function, Message, Outcome, Output, clock, export, random, text};

struct Granted;

impl Function for Granted {
    fn handle(_: Message) -> Outcome {
        let before = clock::monotonic_ns();
        let random = random::u64() ^ u64::from(random::bytes(3)[2]);
        let passed = clock::monotonic_ns() - before;
        Ok(vec![Output::forward("said", text!(clock::now_ms(), " ", passed, " ", random))])
    }
}

export!(Granted);

//! Breaks the limit that the payload names, or succeeds with `ok`.

#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::hint::black_box;

use sedge_function::log::Level;
use sedge_function::{Alert, Failure, Function, Message, Outcome, Output, export, log, text};

struct Misbehave;

impl Function for Misbehave {
    fn handle(message: Message) -> Outcome {
        let payload = core::str::from_utf8(&message.payload).unwrap_or("?");
        let (command, argument) = payload.split_once(' ').unwrap_or((payload, ""));
        match command {
            "loop" => loop {
                black_box(0);
            },
            "trap" => panic!("told to"),
            "memory" => {
                let mut hoard: Vec<Vec<u8>> = Vec::new();
                loop {
                    hoard.push(black_box(vec![1; 65_536]));
                }
            }
            "stack" => Ok(vec![Output::forward("stack", text!(large_frame()))]),
            "recurse" => Ok(vec![Output::forward("depth", text!(depth(1)))]),
            "output" => Ok((0..1000).map(|_| Output::forward("much", vec![b'x'; 1000])).collect()),
            "outputs" => Ok((0..1000).map(|_| Output::forward("many", "")).collect()),
            "log" => {
                let line: String = core::iter::repeat_n('x', 10_000).collect();
                loop {
                    log::write(Level::Info, &line);
                }
            }
            "reject" => Err(Failure::reject(argument)),
            "retry" => {
                let times: u32 = argument.parse().unwrap_or(u32::MAX);
                if message.attempt <= times {
                    return Err(Failure::retry(10, text!("attempt ", u64::from(message.attempt))));
                }
                Ok(vec![Output::forward("retried", text!(u64::from(message.attempt)))])
            }
            // Fails once and works when the dead letter is replayed, as after a fix.
            "once" if message.attempt == 1 => Err(Failure::reject("not yet")),
            "once" => Ok(vec![Output::forward("once", argument)]),
            "wake" => Ok(vec![Output::wake(argument, 1_000)]),
            // At this time of the wall clock.
            "wake-at" => {
                let (name, at_ms) = argument.split_once(' ').unwrap_or((argument, ""));
                let wait_ms = at_ms.parse().unwrap_or(0_u64).saturating_sub(message.received_at_ms);
                Ok(vec![Output::wake(name, wait_ms)])
            }
            "reply" => Ok(vec![Output::reply(200, argument)]),
            "sink" => Ok(vec![Alert::firing("key", "summary").sink(argument).into()]),
            // Waits for a retry first, so that the fields come from the store.
            "fields" if message.attempt == 1 => Err(Failure::retry(argument.parse().unwrap_or(0), "from the store")),
            "fields" => {
                let retained = if message.retained { "retained" } else { "new" };
                let topic = message.response_topic.as_deref().unwrap_or("none");
                let data = message.correlation_data.unwrap_or_default();
                let data = core::str::from_utf8(&data).unwrap_or("?");
                Ok(vec![Output::forward("fields", text!(retained, " ", topic, " ", data))])
            }
            // Their bits differ between processors unless the engine makes them the same.
            "nan" => {
                let zero = black_box(0.0_f64);
                let nans = [
                    zero / black_box(0.0_f64),
                    f64::from_bits(black_box(0xfff4_0000_0000_0123)) + 1.0,
                    black_box(-1.0_f64) % zero,
                ];
                let [a, b, c] = nans.map(f64::to_bits);
                Ok(vec![Output::forward("nan", text!(a, " ", b, " ", c))])
            }
            "publish" => Ok(vec![Output::publish(argument, "from misbehave")]),
            _ => Ok(vec![Output::forward("ok", payload)]),
        }
    }
}

/// A frame of its own, or every message would need it.
#[inline(never)]
fn large_frame() -> u64 {
    let frame = black_box([1_u8; 20_000]);
    frame[black_box(1)].into()
}

/// Not a tail call, since the result is used.
#[expect(unconditional_recursion, reason = "the stack is what is to end it")]
fn depth(level: u64) -> u64 {
    let frame = black_box([level; 64]);
    depth(black_box(level + 1)) + frame[black_box(1)]
}

export!(Misbehave);

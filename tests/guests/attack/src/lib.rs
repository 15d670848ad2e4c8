//! Takes as much of the board as the payload asks for, within its limits: `alert 65000` and so on.

#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use core::hint::black_box;

use sedge_function::log::Level;
use sedge_function::{Alert, Function, Message, Outcome, Output, export, log, state, text};

struct Attack;

impl Function for Attack {
    fn handle(message: Message) -> Outcome {
        let payload = core::str::from_utf8(&message.payload).unwrap_or("?");
        let mut words = payload.split(' ');
        let (command, amount) = (words.next().unwrap_or("?"), words.next().unwrap_or("0"));
        let amount: usize = amount.parse().unwrap_or(0);
        // Keys of alerts differ, or they are folded.
        let serial = words.next().unwrap_or("");
        match command {
            // A control character is six bytes of JSON.
            "alert" => Ok(vec![Alert::firing(serial, repeat('\u{1}', amount)).into()]),
            "key" => Ok(vec![Alert::firing(text!(repeat('k', amount), serial), "a long key").into()]),
            "forward" => Ok(vec![Output::forward("much", vec![b'x'; amount])]),
            // Two copies of this function call each other.
            "fan" => {
                let other = if message.topic.starts_with("attack/") { "echo/" } else { "attack/" };
                Ok((0..amount).map(|n| Output::publish(text!(other, n as i64), payload)).collect())
            }
            "state" => {
                state::set("state", vec![b's'; amount])?;
                Ok(vec![])
            }
            "log" => {
                (0..amount).for_each(|n| log::write(Level::Warn, &text!("line ", n as u64, " of many")));
                Ok(vec![])
            }
            "spin" => {
                for n in 0..amount * 1_000_000 {
                    black_box(n);
                }
                Ok(vec![])
            }
            _ => Ok(vec![]),
        }
    }
}

fn repeat(character: char, times: usize) -> String {
    core::iter::repeat_n(character, times).collect()
}

export!(Attack);

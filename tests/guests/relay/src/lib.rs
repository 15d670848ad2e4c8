//! For benchmarks: forwards the payload unchanged, with an alert if it begins with `!`.

#![no_std]

extern crate alloc;

use alloc::vec;

use sedge_function::{Alert, Function, Message, Outcome, Output, export};

struct Relay;

impl Function for Relay {
    fn handle(message: Message) -> Outcome {
        if let [b'!', rest @ ..] = message.payload.as_slice() {
            let text = core::str::from_utf8(rest).unwrap_or("?");
            return Ok(vec![Alert::firing(text, text).into()]);
        }
        Ok(vec![Output::forward(message.topic, message.payload)])
    }
}

export!(Relay);

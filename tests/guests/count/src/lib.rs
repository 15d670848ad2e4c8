//! Numbers the messages of each topic and sends `<payload> <number>` upstream. Every tenth message is also an alert. A message
//! that takes effect twice or never changes every later number.

#![no_std]

extern crate alloc;

use alloc::vec;

use sedge_function::{Alert, Function, Message, Outcome, Output, export, state, text};

struct Count;

impl Function for Count {
    fn handle(message: Message) -> Outcome {
        let count = state::increment("count", 1)?;
        let payload = core::str::from_utf8(&message.payload).unwrap_or("?");
        let mut outputs = vec![Output::forward(message.topic.as_str(), text!(payload, " ", count))];
        if count % 10 == 0 {
            // A separate key, so that alerts are not folded.
            outputs.push(Alert::firing(text!(message.topic, "/", count), text!(payload, " ", count)).into());
        }
        Ok(outputs)
    }
}

export!(Count);

//! Like `count`, and publishes its version under `said/<label>`. Traps after a change of state on every message whose number is
//! divisible by `trap`.

#![no_std]

extern crate alloc;

use alloc::vec;

use sedge_function::{Alert, Function, Message, Outcome, Output, export, setting_or, state, text};

struct Edition;

impl Function for Edition {
    fn handle(message: Message) -> Outcome {
        let count = state::increment("count", 1)?;
        let payload = core::str::from_utf8(&message.payload).unwrap_or("?");
        let trap: u64 = setting_or("trap", 0)?;
        let number: u64 = payload.parse().unwrap_or(0);
        if trap > 0 && number.is_multiple_of(trap) {
            panic!("told to");
        }
        let label: alloc::string::String = setting_or("label", "".into())?;
        let mut outputs = vec![Output::forward(message.topic.as_str(), text!(payload, " ", count))];
        if !label.is_empty() {
            outputs.push(Output::publish(text!("said/", label), payload));
        }
        if count % 10 == 0 {
            // A separate key, so that alerts are not folded.
            outputs.push(Alert::firing(text!(message.topic, "/", count), text!(payload, " ", count)).into());
        }
        Ok(outputs)
    }
}

export!(Edition);

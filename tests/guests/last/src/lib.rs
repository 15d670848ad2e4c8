//! Function of the invocation benchmark: reads a number from JSON, compares it with a setting, reads the previous number from
//! state and stores the new one.

#![no_std]

extern crate alloc;

use alloc::vec;

use sedge_function::{Alert, Function, Message, Outcome, export, setting, state, text};

struct Last;

impl Function for Last {
    fn handle(message: Message) -> Outcome {
        let Some(value) = message.number("temperature")? else { return Ok(vec![]) };
        let max: f64 = setting("max")?;
        let before: f64 = state::get("last")?.unwrap_or(value);
        state::set("last", value)?;
        if value > max && before <= max {
            return Ok(vec![Alert::firing(message.topic, text!(value, " is above ", max)).into()]);
        }
        Ok(vec![])
    }
}

export!(Last);

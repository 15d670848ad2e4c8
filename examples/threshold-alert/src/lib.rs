//! An alert when a value crosses a limit, and another when it is well back.

#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec;

use sedge_function::{Alert, Function, Message, Outcome, export, setting, setting_or, state, text};

struct ThresholdAlert;

impl Function for ThresholdAlert {
    fn handle(message: Message) -> Outcome {
        let field: String = setting_or("field", "temperature".into())?;
        // Devices send partial updates, a battery level alone for example: not this function's business.
        let Some(value) = message.number(&field) else { return Ok(vec![]) };
        let max: f64 = setting("max")?;
        let firing = state::get("firing")?.unwrap_or(false);
        if !firing && value > max {
            state::set("firing", true)?;
            let summary = text!(field, " is ", value, ", above ", max);
            return Ok(vec![alert(Alert::firing(text!(message.topic, "/above"), summary), field, value)]);
        }
        if firing && value <= max - setting_or("hysteresis", 0.0)? {
            state::set("firing", false)?;
            let summary = text!(field, " is back to ", value);
            return Ok(vec![alert(Alert::resolved(text!(message.topic, "/above"), summary), field, value)]);
        }
        Ok(vec![])
    }
}

fn alert(alert: Alert, field: String, value: f64) -> sedge_function::Output {
    alert.critical().value(value).label("field", field).into()
}

export!(ThresholdAlert);

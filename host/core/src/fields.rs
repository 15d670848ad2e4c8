//! The fields of a forward: which values of its JSON a database of series keeps, and what is folded when data is thinned out.
//!
//! The values of a JSON object are fields under their names, those of objects within it under names joined with dots
//! (`motor.speed`), [`MAX_DEPTH`] levels deep. The object `labels` names the series instead. A payload that is one value is the field
//! `value`. Which types are kept is decided by the caller; lists and `null` never are.

use serde_json::{Map, Value};

/// Objects within objects that are looked into.
const MAX_DEPTH: usize = 4;

/// Fields of one record: what is beyond is left out.
pub const MAX_FIELDS: usize = 256;

/// Calls `each` with the name and the value of each field.
pub fn each(payload: &Value, each: &mut dyn FnMut(&str, &Value)) {
    match payload {
        Value::Object(object) => of_object("", object, MAX_DEPTH, each),
        value => each("value", value),
    }
}

fn of_object(prefix: &str, object: &Map<String, Value>, depth: usize, each: &mut dyn FnMut(&str, &Value)) {
    for (name, value) in object.iter().filter(|(name, _)| !(prefix.is_empty() && *name == "labels")) {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if depth > 0 => of_object(&format!("{name}."), inner, depth - 1, each),
            value => each(&name, value),
        }
    }
}

/// A number as it is kept. Whole ones, too, are floats: a field has one type for ever.
pub fn number(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

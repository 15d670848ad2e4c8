//! Cayenne Low Power Payload, of many LoRaWAN sensors: a row of values, each one byte of channel, one byte of type (the IPSO object
//! number minus 3200) and a big-endian number whose size and unit the type says.

use crate::bytes::Reader;
use crate::{JsonObject, ReadError, text};

/// How one number of a type is written.
struct Kind {
    name: &'static str,
    bytes: usize,
    /// Units that make one: 10 when the number counts tenths.
    divisor: f64,
    signed: bool,
}

const fn signed(name: &'static str, bytes: usize, divisor: f64) -> Kind {
    Kind { name, bytes, divisor, signed: true }
}

const fn unsigned(name: &'static str, bytes: usize, divisor: f64) -> Kind {
    Kind { name, bytes, divisor, signed: false }
}

const ACCELERATION: &[Kind] =
    &[signed("acceleration_x", 2, 1000.0), signed("acceleration_y", 2, 1000.0), signed("acceleration_z", 2, 1000.0)];
const ROTATION: &[Kind] =
    &[signed("rotation_x", 2, 100.0), signed("rotation_y", 2, 100.0), signed("rotation_z", 2, 100.0)];
const POSITION: &[Kind] =
    &[signed("latitude", 3, 10_000.0), signed("longitude", 3, 10_000.0), signed("altitude", 3, 100.0)];

/// The numbers of a type, in their order.
fn kinds(code: u8) -> Option<&'static [Kind]> {
    Some(match code {
        0 => &const { [unsigned("digital_in", 1, 1.0)] },
        1 => &const { [unsigned("digital_out", 1, 1.0)] },
        2 => &const { [signed("analog_in", 2, 100.0)] },
        3 => &const { [signed("analog_out", 2, 100.0)] },
        100 => &const { [unsigned("generic", 4, 1.0)] },
        101 => &const { [unsigned("illuminance", 2, 1.0)] },
        102 => &const { [unsigned("presence", 1, 1.0)] },
        103 => &const { [signed("temperature", 2, 10.0)] },
        104 => &const { [unsigned("humidity", 1, 2.0)] },
        113 => ACCELERATION,
        115 => &const { [unsigned("pressure", 2, 10.0)] },
        116 => &const { [unsigned("voltage", 2, 100.0)] },
        117 => &const { [unsigned("current", 2, 1000.0)] },
        118 => &const { [unsigned("frequency", 4, 1.0)] },
        120 => &const { [unsigned("percentage", 1, 1.0)] },
        121 => &const { [signed("altitude", 2, 1.0)] },
        125 => &const { [unsigned("concentration", 2, 1.0)] },
        128 => &const { [unsigned("power", 2, 1.0)] },
        130 => &const { [unsigned("distance", 4, 1000.0)] },
        131 => &const { [unsigned("energy", 4, 1000.0)] },
        132 => &const { [unsigned("direction", 2, 1.0)] },
        133 => &const { [unsigned("unix_time", 4, 1.0)] },
        134 => ROTATION,
        136 => POSITION,
        142 => &const { [unsigned("switch", 1, 1.0)] },
        _ => return None,
    })
}

/// All values as one JSON object: `{"temperature":27.2,"humidity":48.5}`. A second value of one kind gets its channel:
/// `temperature_5`. A frame that is cut off, has an unknown type or no value is unreadable, with the place.
pub fn decode(payload: &[u8]) -> Result<JsonObject, ReadError> {
    let mut object = JsonObject::new();
    let mut seen = [false; 256];
    let mut frame = Reader::new(payload);
    while !frame.is_empty() {
        let at = frame.position();
        let channel = frame.u8()?;
        let Ok(code) = frame.u8() else { return Err(invalid("the payload ends after a channel number", at)) };
        let Some(kinds) = kinds(code) else {
            return Err(invalid(&text!("unknown Cayenne LPP type ", code), at + 1));
        };
        let again = seen.get_mut(usize::from(code)).is_some_and(|seen| core::mem::replace(seen, true));
        for kind in kinds {
            let Ok(number) = frame.take(kind.bytes) else {
                return Err(invalid(&text!("the payload ends within the ", kind.name), at));
            };
            let mut number = Reader::new(number);
            let value =
                if kind.signed { number.int_be(kind.bytes)? as f64 } else { number.uint_be(kind.bytes)? as f64 };
            object = match again {
                false => object.number(kind.name, value / kind.divisor),
                true => object.number(&text!(kind.name, "_", channel), value / kind.divisor),
            };
        }
    }
    if object.is_empty() {
        return Err(ReadError::Unreadable("no Cayenne LPP value in the payload".into()));
    }
    Ok(object)
}

#[cold]
#[inline(never)]
fn invalid(what: &str, at: usize) -> ReadError {
    ReadError::Unreadable(text!(what, " at byte ", at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(payload: &[u8], json: &str) {
        let object = decode(payload).unwrap();
        assert_eq!(core::str::from_utf8(&object.into_bytes()), Ok(json));
    }

    #[track_caller]
    fn check_rejected(payload: &[u8], reason: &str) {
        assert_eq!(decode(payload), Err(ReadError::Unreadable(reason.into())));
    }

    #[test]
    fn decodes_the_examples_of_the_format() {
        check(&[3, 103, 1, 16, 5, 103, 0, 255], r#"{"temperature":27.2,"temperature_5":25.5}"#);
        check(&[1, 103, 255, 215], r#"{"temperature":-4.1}"#);
        check(
            &[6, 113, 4, 210, 251, 46, 0, 0],
            r#"{"acceleration_x":1.234,"acceleration_y":-1.234,"acceleration_z":0}"#,
        );
        check(
            &[1, 136, 6, 118, 95, 242, 150, 10, 0, 3, 232],
            r#"{"latitude":42.3519,"longitude":-87.9094,"altitude":10}"#,
        );
    }

    #[test]
    fn decodes_every_size_and_sign() {
        check(&[1, 104, 97, 2, 115, 39, 186, 3, 116, 1, 74], r#"{"humidity":48.5,"pressure":1017,"voltage":3.3}"#);
        check(&[1, 0, 1, 2, 2, 255, 156, 3, 101, 255, 255], r#"{"digital_in":1,"analog_in":-1,"illuminance":65535}"#);
        check(&[1, 133, 255, 255, 255, 255], r#"{"unix_time":4294967295}"#);
    }

    #[test]
    fn rejects_with_the_place() {
        check_rejected(&[], "no Cayenne LPP value in the payload");
        check_rejected(&[1, 103, 1], "the payload ends within the temperature at byte 0");
        check_rejected(&[1, 103, 1, 16, 2, 99, 0], "unknown Cayenne LPP type 99 at byte 5");
        check_rejected(&[1, 103, 1, 16, 2], "the payload ends after a channel number at byte 4");
    }
}

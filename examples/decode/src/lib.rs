//! Cayenne LPP payloads to JSON.

#![no_std]

use sedge_function::lpp;
use sedge_function::prelude::*;

struct Decode;

impl Function for Decode {
    fn handle(message: Message) -> Outcome {
        let object = lpp::decode(&message.payload)?;
        Ok(vec![Output::publish_json(text!("derived/", message.topic), object)])
    }
}

export!(Decode);

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_function::testing::Board;

    fn run(payload: &[u8]) -> Outcome {
        Board::from_manifest(include_str!("../function.toml")).run::<Decode>(Message::new("lpp/cellar", payload))
    }

    #[test]
    fn publishes_what_it_decoded() {
        let object = JsonObject::new().number("temperature", 27.2).number("humidity", 48.5);
        let published = Output::publish_json("derived/lpp/cellar", object);
        assert_eq!(run(&[1, 103, 1, 16, 2, 104, 97]), Ok(vec![published]));
    }

    #[test]
    fn rejects_what_is_no_lpp() {
        assert!(matches!(run(b"21.5"), Err(Failure::Reject(_))));
        assert!(matches!(run(b""), Err(Failure::Reject(_))));
    }
}

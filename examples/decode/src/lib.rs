//! Cayenne LPP payloads to JSON.

#![no_std]

mod lpp;

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

    #[test]
    fn publishes_what_it_decoded() {
        let message = Message::new("lpp/cellar", [1, 103, 1, 16, 2, 104, 97]);
        let object = JsonObject::new().number("temperature", 27.2).number("humidity", 48.5);
        assert_eq!(Board::new().run::<Decode>(message), Ok(vec![Output::publish_json("derived/lpp/cellar", object)]));
    }

    #[test]
    fn rejects_what_is_no_lpp() {
        let message = Message::new("lpp/cellar", "21.5");
        assert!(matches!(Board::new().run::<Decode>(message), Err(Failure::Reject(_))));
    }
}

//! Calls about topics that say nothing: section `silence` of function.toml.

use crate::Message;

const TOPIC: &str = "$silence";
const BACK: &str = "$silence/back";

/// What a call about a silent topic says. State and order are those of that topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence<'a> {
    pub topic: &'a str,
    /// For how many milliseconds of connected time it was silent.
    pub silent_ms: u64,
    /// It speaks again.
    pub is_back: bool,
}

impl Message {
    /// What the board says of a topic that is silent or speaks again, if this is such a call.
    pub fn silence(&self) -> Option<Silence<'_>> {
        let is_back = match self.topic.as_str() {
            TOPIC => false,
            BACK => true,
            _ => return None,
        };
        let silent_ms = self.property("sedge-silent-ms").and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(Silence { topic: self.property("sedge-topic")?, silent_ms, is_back })
    }
}

#[cfg(not(target_family = "wasm"))]
impl Silence<'_> {
    /// The message of such a call, for tests.
    pub(crate) fn message(self) -> Message {
        let properties =
            [("sedge-topic", self.topic.into()), ("sedge-silent-ms", alloc::format!("{}", self.silent_ms))];
        let properties = properties.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Message { properties, ..Message::new(if self.is_back { BACK } else { TOPIC }, "") }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec;

    use crate::testing::Board;
    use crate::{Alert, Function, Message, Outcome, Silence, state, text};

    struct Watchdog;

    impl Function for Watchdog {
        fn handle(message: Message) -> Outcome {
            let Some(Silence { topic, silent_ms, is_back }) = message.silence() else {
                state::set("last", message.topic.clone())?;
                return Ok(vec![]);
            };
            assert_eq!(message.state_topic(), topic);
            let last = state::get::<String>("last")?.unwrap_or_default();
            let summary = text!(last, " ", silent_ms);
            let alert = if is_back { Alert::resolved(topic, summary) } else { Alert::firing(topic, summary) };
            Ok(vec![alert.into()])
        }
    }

    fn alert(outcome: Outcome) -> (bool, String) {
        match &outcome.unwrap()[..] {
            [crate::Output::Alert(alert)] => (alert.status == crate::AlertStatus::Firing, alert.summary.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_about_a_silent_topic_has_the_state_of_that_topic() {
        let mut board = Board::from_manifest(
            "name = \"watchdog\"\nsubscribe = [\"t/+\"]\nstate = \"topic\"\n\
             [silence]\nafter = \"10m\"\nback = true\nexpect = [\"t/{name}\"]\nnames = [\"1\"]\nmax_topics = 5\n",
        );
        board.run::<Watchdog>(Message::new("t/1", "")).unwrap();
        assert_eq!(alert(board.silence::<Watchdog>("t/1", 600_000)), (true, "t/1 600000".into()));
        assert_eq!(alert(board.silence::<Watchdog>("t/2", 600_000)), (true, " 600000".into()));
        assert_eq!(alert(board.back::<Watchdog>("t/1", 900_000)), (false, "t/1 900000".into()));
        assert_eq!(Message::new("t/1", "").silence(), None);
    }

    #[test]
    #[should_panic(expected = "function.toml has no section `silence` with `back = true`")]
    fn a_call_that_no_board_makes_panics() {
        let manifest = "name = \"x\"\nsubscribe = [\"t/+\"]\n[silence]\nafter = \"10m\"\n";
        _ = Board::from_manifest(manifest).back::<Watchdog>("t/1", 1);
    }
}

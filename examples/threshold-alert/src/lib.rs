//! An alert when a value goes above a limit, and another when it is well back.

#![no_std]

use sedge_function::prelude::*;

struct ThresholdAlert;

impl Function for ThresholdAlert {
    fn handle(message: Message) -> Outcome {
        let field = setting_or("field", String::from("temperature"))?;
        // Devices also send updates without it, a battery level alone for example: not this function's business.
        let Some(value) = message.number(&field) else { return Ok(vec![]) };
        let max: f64 = setting("max")?;
        let firing = state::get("firing")?.unwrap_or(false);
        let key = text!(message.topic, "/", field);
        let alert = if !firing && value > max {
            Alert::firing(key, text!(field, " is ", value, ", above ", max)).critical()
        } else if firing && value <= max - setting_or("hysteresis", 0.0)? {
            Alert::resolved(key, text!(field, " is back to ", value)).critical()
        } else {
            return Ok(vec![]);
        };
        state::set("firing", !firing)?;
        Ok(vec![alert.value(value).label("topic", message.topic).into()])
    }
}

export!(ThresholdAlert);

#[cfg(test)]
mod tests {
    use super::*;
    use sedge_function::testing::Board;
    use sedge_function::{AlertStatus, Severity};

    fn board() -> Board {
        Board::new().setting("max", "80").setting("hysteresis", "2")
    }

    /// The status of the alert that a message causes.
    fn send(board: &mut Board, topic: &str, payload: &str) -> Option<AlertStatus> {
        let outputs = board.run::<ThresholdAlert>(Message::new(topic, payload)).unwrap();
        assert!(outputs.len() <= 1);
        outputs.into_iter().next().map(|output| match output {
            Output::Alert(alert) => alert.status,
            other => panic!("{other:?} is no alert"),
        })
    }

    #[test]
    fn fires_once_and_resolves_below_the_hysteresis() {
        let mut board = board();
        let mut send = |value| send(&mut board, "sensors/oven/temperature", value);
        assert_eq!(send("80"), None);
        assert_eq!(send("80.5"), Some(AlertStatus::Firing));
        assert_eq!(send("95"), None);
        assert_eq!(send("79"), None);
        assert_eq!(send("78"), Some(AlertStatus::Resolved));
        assert_eq!(send("78"), None);
        assert_eq!(send("81"), Some(AlertStatus::Firing));
    }

    #[test]
    fn keeps_topics_apart() {
        let mut board = board();
        assert_eq!(send(&mut board, "sensors/a/temperature", "90"), Some(AlertStatus::Firing));
        assert_eq!(send(&mut board, "sensors/b/temperature", "70"), None);
        assert_eq!(send(&mut board, "sensors/b/temperature", "90"), Some(AlertStatus::Firing));
    }

    #[test]
    fn reads_what_devices_send() {
        for (topic, payload) in [
            ("zigbee2mqtt/oven", r#"{"battery":100,"linkquality":91,"temperature":81.25}"#),
            (
                "tele/oven/SENSOR",
                r#"{"Time":"2026-01-05T11:02:13","DS18B20":{"Id":"0316A2","Temperature":81.3},"TempUnit":"C"}"#,
            ),
            ("oven/sensor/core/state", "81.2"),
            ("sensors/oven/temperature", "81.2\n"),
        ] {
            assert_eq!(send(&mut board(), topic, payload), Some(AlertStatus::Firing), "{payload}");
        }
        assert_eq!(send(&mut board(), "zigbee2mqtt/oven", r#"{"battery":99}"#), None);
    }

    #[test]
    fn says_what_it_saw() {
        let outputs = board().run::<ThresholdAlert>(Message::new("t", "81.5")).unwrap();
        let Output::Alert(alert) = &outputs[0] else { panic!("no alert") };
        assert_eq!(alert.key, "t/temperature");
        assert_eq!(alert.summary, "temperature is 81.5, above 80");
        assert_eq!((alert.severity, alert.value), (Severity::Critical, Some(81.5)));
    }

    #[test]
    fn names_a_bad_setting() {
        let run = |board: Board| { board }.run::<ThresholdAlert>(Message::new("t", "1")).unwrap_err();
        assert_eq!(run(Board::new()), Failure::reject("setting \"max\" is missing: add it to [config]"));
        assert_eq!(run(Board::new().setting("max", "hot")), Failure::reject("setting \"max\" is not a number"));
    }
}

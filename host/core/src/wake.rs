//! Wakes: what a function may ask for, and the message that it is run with when the time has come.
//!
//! A wake belongs to a function, to the scope of its state and to a name. Where the function has one state, that is its scope;
//! otherwise the scope is the topic of the message that set the wake.

use bytes::Bytes;

use crate::forward::{FAN_OUT, HOPS};
use crate::made::ORIGIN;
use crate::message::{Failure, FailureCode, Message, Wake};
use crate::time::Now;
use crate::topic;

/// Topics of wakes: `$wake/<name>`.
pub const PREFIX: &str = "$wake/";

pub const MAX_NAME_BYTES: usize = 128;
/// Ten years.
pub const MAX_AFTER_MS: u64 = 3_652 * 86_400_000;

/// Fails if the board cannot do what a function asks for.
pub fn check(wake: &Wake) -> Result<(), Failure> {
    let Wake { name, after_ms } = wake;
    let invalid = |detail: String| Err(Failure { code: FailureCode::InvalidWake, detail });
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return invalid(format!("the name of a wake has {} bytes; use 1 to {MAX_NAME_BYTES}", name.len()));
    }
    if let Err(error) = topic::validate_name(name) {
        return invalid(format!("{name:?} is not a name of a wake, which becomes a part of a topic: {error}"));
    }
    match after_ms {
        Some(0) => invalid(format!("wake {name:?} after 0 ms: use at least 1 ms, or return the outputs at once")),
        Some(after_ms) if *after_ms > MAX_AFTER_MS => {
            invalid(format!("wake {name:?} after {after_ms} ms: the limit is {MAX_AFTER_MS} ms, which is ten years"))
        }
        _ => Ok(()),
    }
}

/// The message of a wake that is due. `hops` and `fan_out`: those of the message that set it.
pub fn message(name: &str, origin: &str, hops: u32, fan_out: Option<u32>, now: Now) -> Message {
    let mut properties: Vec<(Box<str>, Box<str>)> = vec![(ORIGIN.into(), origin.into())];
    if hops > 0 {
        properties.push((HOPS.into(), hops.to_string().into()));
    }
    if let Some(fan_out) = fan_out {
        properties.push((FAN_OUT.into(), fan_out.to_string().into()));
    }
    Message { properties, ..Message::new(format!("{PREFIX}{name}"), Bytes::new(), now.unix_ms, now.synced) }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test may read clocks and files")]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;

    fn wake(name: &str, after_ms: Option<u64>) -> Result<(), Failure> {
        check(&Wake { name: name.into(), after_ms })
    }

    #[test]
    fn names_and_times_have_bounds() {
        let (longest, too_long) = ("n".repeat(MAX_NAME_BYTES), "n".repeat(MAX_NAME_BYTES + 1));
        for (name, after_ms) in [("open", Some(1)), ("a/b c", Some(MAX_AFTER_MS)), (&longest, None)] {
            assert_eq!(wake(name, after_ms), Ok(()), "{name} {after_ms:?}");
        }
        for (name, after_ms, said) in [
            ("", None, "has 0 bytes; use 1 to 128"),
            (&*too_long, Some(1), "has 129 bytes"),
            ("a+", Some(1), "is not a name of a wake"),
            ("a\0", Some(1), "is not a name of a wake"),
            ("open", Some(0), "wake \"open\" after 0 ms: use at least 1 ms"),
            ("open", Some(MAX_AFTER_MS + 1), "the limit is 315532800000 ms, which is ten years"),
        ] {
            let failure = wake(name, after_ms).unwrap_err();
            assert!(failure.detail.contains(said) && failure.code == FailureCode::InvalidWake, "{}", failure.detail);
        }
    }

    #[test]
    fn the_state_of_a_wake_is_that_of_the_topic_that_set_it() {
        let now = Now::at(Instant::now(), SystemTime::now(), true);
        let message = message("open", "doors/1", 2, None, now);
        assert_eq!((&*message.topic, message.state_topic()), ("$wake/open", "doors/1"));
        assert_eq!(message.property(HOPS), Some("2"));
        assert_eq!(&*message.shared_state_topic(), "doors/1");
        // Whoever publishes an ordinary message cannot choose the state.
        let forged = Message { topic: "doors/2".into(), ..message };
        assert_eq!(forged.state_topic(), "doors/2");
    }
}

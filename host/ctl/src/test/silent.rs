//! Calls about silent topics in a case: which topics were heard, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sedge_core::manifest::{Manifest, Silence};
use sedge_core::silence;

pub(super) struct Silences<'a> {
    silence: Option<&'a Silence>,
    topics: BTreeMap<String, Topic>,
}

#[derive(Clone, Copy)]
struct Topic {
    heard_ms: u64,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    Speaking,
    Silent,
    /// It spoke again after so long.
    Back(u64),
}

/// A call: its topic, its time, and for how long the topic was silent.
pub(super) struct Call {
    pub(super) topic: &'static str,
    pub(super) at_ms: u64,
    pub(super) silent_ms: u64,
}

impl<'a> Silences<'a> {
    pub(super) fn new(manifest: &'a Manifest, start_ms: u64) -> Self {
        let silence = manifest.silence.as_ref();
        let expected = silence.into_iter().flat_map(Silence::expected);
        let speaking = Topic { heard_ms: start_ms, stage: Stage::Speaking };
        Self { silence, topics: expected.map(|topic| (topic, speaking)).collect() }
    }

    fn silence(&self) -> anyhow::Result<&'a Silence> {
        self.silence.context(
            "a call about silence, and function.toml has no section silence: add [silence] with after = \"10m\" there",
        )
    }

    /// A call as a recording has it.
    pub(super) fn check(&self, topic: &str) -> anyhow::Result<()> {
        let silence = self.silence()?;
        if topic == silence::BACK && !silence.back {
            bail!("function.toml asks for no call when a topic speaks again: add back = true to section silence there");
        }
        Ok(())
    }

    /// A message that the broker has not kept.
    pub(super) fn heard(&mut self, topic: &str, now_ms: u64) {
        let Some(silence) = self.silence else { return };
        let speaking = Topic { heard_ms: now_ms, stage: Stage::Speaking };
        let it = self.topics.entry(topic.to_owned()).or_insert(speaking);
        if matches!(it.stage, Stage::Silent) {
            let silent_ms = now_ms - it.heard_ms;
            it.stage = if silence.back { Stage::Back(silent_ms) } else { Stage::Speaking };
        }
        it.heard_ms = now_ms;
    }

    /// The call that `topic` is silent: at the time at which it is, or `after_ms` behind the message before, if that is later.
    pub(super) fn silent(&mut self, topic: &str, now_ms: u64, after_ms: Option<u64>) -> anyhow::Result<Call> {
        let after = ms(self.silence()?.after);
        let Some(it) = self.topics.get_mut(topic) else {
            bail!("{topic} was not heard: send a message of it first, or name it in silence.expect of function.toml");
        };
        if !matches!(it.stage, Stage::Speaking) {
            bail!("the silence of {topic} was told already: it has to speak, and with back = true that is told first");
        }
        let (at, due) = (now_ms + after_ms.unwrap_or(0), it.heard_ms + after);
        if after_ms.is_some() && at < due {
            bail!("{topic} is silent {} ms later: remove after, or raise it", due - at);
        }
        it.stage = Stage::Silent;
        let at_ms = at.max(due);
        Ok(Call { topic: silence::TOPIC, at_ms, silent_ms: at_ms - it.heard_ms })
    }

    /// The call that `topic` speaks again.
    pub(super) fn back(&mut self, topic: &str, now_ms: u64, after_ms: Option<u64>) -> anyhow::Result<Call> {
        self.check(silence::BACK)?;
        let Some((it, silent_ms)) = self.topics.get_mut(topic).and_then(|it| match it.stage {
            Stage::Back(silent_ms) => Some((it, silent_ms)),
            Stage::Speaking | Stage::Silent => None,
        }) else {
            bail!(
                "{topic} does not speak again: tell that it is silent (silence = {topic:?}), then send a message of it"
            );
        };
        it.stage = Stage::Speaking;
        Ok(Call { topic: silence::BACK, at_ms: now_ms + after_ms.unwrap_or(0), silent_ms })
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! What must hold of calls about silent topics. Knows what was delivered, and nothing of the board.

use std::collections::BTreeMap;
use std::time::Duration;

/// After so long of connected time a topic is silent.
pub const AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Topic {
    heard: Duration,
    /// The silence since then is told.
    is_told: bool,
    /// The board may have forgotten that it heard the topic, and the broker has nothing that says it again.
    is_lost: bool,
    /// Earlier silences that were long enough and not told when they ended.
    untold: u32,
    /// Calls that may be made because nobody knows what the board has heard.
    may: u32,
    calls: u32,
    backs: u32,
}

#[derive(Debug, Default)]
pub struct SilenceModel {
    topics: BTreeMap<String, Topic>,
    /// Time with a connection and a disk.
    listened: Duration,
    pub was_told: bool,
    pub spoke_again: bool,
}

impl SilenceModel {
    /// Time passes in which somebody listens.
    pub fn pass(&mut self, time: Duration) {
        self.listened += time;
    }

    /// A message is delivered. `is_certain`: it comes again if the board forgets it.
    pub fn heard(&mut self, topic: &str, is_certain: bool) {
        let now = self.listened;
        let it = match self.topics.get_mut(topic) {
            Some(it) => it,
            // It need not be told.
            None if !is_certain => {
                let new = Topic { heard: now, is_told: true, may: 1, ..Topic::default() };
                self.topics.insert(topic.to_owned(), new);
                return;
            }
            None => self.topics.entry(topic.to_owned()).or_insert_with(|| Topic { heard: now, ..Topic::default() }),
        };
        if !is_certain {
            it.may += 1;
            return;
        }
        it.untold += u32::from(!it.is_told && now >= it.heard + AFTER);
        (it.heard, it.is_told, it.is_lost) = (now, false, false);
    }

    /// What was delivered of this topic and not acknowledged may never come again.
    pub fn lost(&mut self, topic: &str) {
        if let Some(it) = self.topics.get_mut(topic) {
            it.may += 1;
            it.is_lost = true;
        }
    }

    /// A call is committed. `Err`: why it should not have been made.
    pub fn told(&mut self, topic: &str) -> Result<(), String> {
        let now = self.listened;
        self.was_told = true;
        let it = self.topics.entry(topic.to_owned()).or_default();
        it.calls += 1;
        if !it.is_told && now >= it.heard + AFTER {
            it.is_told = true;
        } else if it.untold > 0 {
            it.untold -= 1;
        } else if it.may > 0 {
            it.may -= 1;
        } else {
            return Err(format!("{topic} was told at {now:?}: {it:?}"));
        }
        Ok(())
    }

    /// A call that a topic speaks again is committed.
    pub fn back(&mut self, topic: &str) -> Result<(), String> {
        self.spoke_again = true;
        let it = self.topics.entry(topic.to_owned()).or_default();
        it.backs += 1;
        match it.backs <= it.calls {
            true => Ok(()),
            false => Err(format!("{topic} was told to speak again without having been silent: {it:?}")),
        }
    }

    /// Topics that are silent and were not told.
    pub fn untold(&self) -> usize {
        self.topics.values().filter(|it| !it.is_told && !it.is_lost).count()
    }
}

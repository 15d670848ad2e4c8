//! Clients over HTTP as a model: each sends a request, waits for one answer, and may repeat it under its id.

use std::collections::BTreeMap;

use sedge_core::request::{Request, RequestId, Response};

use crate::random::Random;
use crate::reference::{self, FUNCTIONS, Reference};
use crate::rig;

/// What a client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub function: &'static str,
    pub topic: String,
    pub payload: String,
    key: Option<String>,
}

#[derive(Debug, Default)]
pub struct Clients {
    last: u64,
    /// Not answered.
    open: BTreeMap<RequestId, Sent>,
    /// Requests with an id, to be repeated.
    keyed: Vec<Sent>,
    /// Answers after which a repeat has the same one, by id.
    answers: BTreeMap<String, Response>,
}

impl Clients {
    /// A new request, or one that is sent again under its id.
    pub fn send(&mut self, random: &mut Random, letter: char, number: u64) -> (Request, Sent) {
        let is_repeat = !self.keyed.is_empty() && random.chance(250);
        let sent = if is_repeat { random.pick(&self.keyed).clone() } else { new(random, letter, number) };
        if sent.key.is_some() && !is_repeat {
            self.keyed.push(sent.clone());
        }
        self.last += 1;
        let path = sent.topic.strip_prefix("$http").expect("the topic of a request");
        let headers: Vec<(&str, &str)> = sent.key.iter().map(|key| ("idempotency-key", key.as_str())).collect();
        let request = rig::request(self.last, &format!("POST {path}"), &sent.payload, &headers);
        self.open.insert(request.id, sent.clone());
        (request, sent)
    }

    /// Takes an answer. Returns the request, and what was reached.
    pub fn answered(
        &mut self,
        id: RequestId,
        response: &Response,
        reference: &mut Reference,
    ) -> Option<(Sent, &'static str)> {
        let Some(sent) = self.open.remove(&id) else {
            reference.broken(reference::ANSWERED_ONCE, format!("{id:?} is answered once more: {response:?}"));
            return None;
        };
        if is_turned_away(response.status) {
            return Some((sent, "a request was turned away"));
        }
        let Some(key) = &sent.key else { return Some((sent, "a request was answered")) };
        match self.answers.get(key) {
            Some(first) if first != response => {
                let what = format!("{sent:?} had {first:?}, and its repeat {response:?}");
                reference.broken(reference::ANSWERED_ONCE, what);
            }
            Some(_) => return Some((sent, "a repeat of a request had the answer of the first")),
            None => drop(self.answers.insert(key.clone(), response.clone())),
        }
        let in_progress = self.open.values().any(|other| other.key == sent.key);
        let in_progress =
            in_progress.then_some("a request was answered while an earlier one of its id was in progress");
        Some((sent, in_progress.unwrap_or("a request was answered")))
    }

    /// The connections break.
    pub fn cut(&mut self) {
        self.open.clear();
    }

    pub fn waiting(&self) -> usize {
        self.open.len()
    }
}

/// Whether nothing came of a request, or nobody knows.
pub fn is_turned_away(status: u16) -> bool {
    matches!(status, 400..=421 | 423..=499 | 503)
}

fn new(random: &mut Random, letter: char, number: u64) -> Sent {
    let function = *random.pick(&FUNCTIONS);
    let topic = format!("$http/{function}/{}", random.below(3));
    let key = random.chance(300).then(|| format!("key{number}"));
    // A repeat may come late, out of order.
    let mark = if key.is_some() { "k" } else { "" };
    Sent { function, topic, payload: format!("{letter}{number}{mark}"), key }
}

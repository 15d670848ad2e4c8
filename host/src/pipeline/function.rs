//! A function as the spine knows it: its place in the order of things, which stays, and its versions, which come and go.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::deployment::Deployment;
use super::quarantine::{self, Quarantine};
use super::recall::Recall;
use super::trial::Candidate;
use crate::manifest::{Manifest, StateScope};
use crate::telemetry::FunctionMetrics;
use crate::topic::TopicFilter;
use crate::worker::protocol::JobScope;

/// One installed version.
#[derive(Debug)]
pub struct Edition {
    pub number: u32,
    pub manifest: Arc<Manifest>,
    /// Its jobs that the workers have not answered.
    pub jobs: Cell<u32>,
    /// On trial, or it has failed it: if it misbehaves, another version runs the message.
    pub is_unproven: Cell<bool>,
}

/// What is run under one name. It keeps its number when its versions change, and when it is removed.
pub struct Function {
    pub name: Arc<str>,
    pub metrics: Arc<FunctionMetrics>,
    pub quarantine: Quarantine,
    pub next_tick: Option<Instant>,
    pub tick_under_way: bool,
    /// Said once, not for every message.
    pub warned_without_upstream: bool,
    /// The version that has proven itself. It stays loaded while another is on trial.
    pub proven: Option<Rc<Edition>>,
    pub candidate: Option<Candidate>,
    /// Replaced, with jobs under way.
    pub retired: Vec<Rc<Edition>>,
    /// Its jobs are called back, and new ones wait until all of them are answered.
    pub drain: Option<Recall>,
    /// The number under which a version runs beside this one, on the same messages, without effect.
    pub shadow: Option<usize>,
    /// What it does has no effect.
    pub is_shadow: bool,
    /// What a shadow was made of.
    pub deployment: Option<Deployment>,
    /// The function that this one runs beside.
    pub shadow_of: Option<usize>,
}

impl Edition {
    pub fn new(number: u32, manifest: Arc<Manifest>, on_trial: bool) -> Self {
        Self { number, manifest, jobs: Cell::new(0), is_unproven: Cell::new(on_trial) }
    }

    pub fn wants(&self, topic: &str) -> bool {
        let is_timer = || self.manifest.every.is_some() && topic.starts_with("$timer/");
        self.manifest.subscribe.iter().any(|filter| filter.matches(topic)) || is_timer()
    }

    pub fn scope(&self) -> JobScope {
        match self.manifest.state {
            StateScope::None => JobScope::None,
            StateScope::Topic => JobScope::Topic,
            StateScope::Function => JobScope::Function,
        }
    }

    /// Whether the two order their messages, place their jobs and wait for state in the same way. Between versions with
    /// state and without, one that needs not wait would overtake one that does.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        self.manifest.state == other.manifest.state
    }
}

impl Function {
    pub fn new(name: Arc<str>, metrics: Arc<FunctionMetrics>, quarantine: quarantine::Settings) -> Self {
        Self {
            name,
            metrics,
            quarantine: Quarantine::new(quarantine),
            next_tick: None,
            tick_under_way: false,
            warned_without_upstream: false,
            proven: None,
            candidate: None,
            retired: Vec::new(),
            drain: None,
            shadow: None,
            is_shadow: false,
            deployment: None,
            shadow_of: None,
        }
    }

    /// The version that messages go to.
    pub fn serving(&self) -> Option<&Rc<Edition>> {
        self.current().next()
    }

    /// The version that a message of this topic goes to. While one is on trial, topics that it does not want any more go
    /// on to the one before: it may have to serve again.
    pub fn serving_for(&self, topic: &str) -> Option<&Rc<Edition>> {
        match &self.candidate {
            None => self.proven.as_ref(),
            Some(candidate) if candidate.edition.wants(topic) => Some(&candidate.edition),
            Some(candidate) => self.proven.as_ref().filter(|it| it.wants(topic)).or(Some(&candidate.edition)),
        }
    }

    /// The version on trial, and the one that has proven itself.
    pub fn current(&self) -> impl Iterator<Item = &Rc<Edition>> {
        self.candidate.iter().map(|candidate| &candidate.edition).chain(&self.proven)
    }

    pub fn edition(&self, number: u32) -> Option<&Rc<Edition>> {
        self.current().chain(&self.retired).find(|edition| edition.number == number)
    }

    /// Whether another version runs what this one misbehaves over.
    pub fn can_fall_back(&self, edition: &Edition) -> bool {
        edition.is_unproven.get() && self.proven.as_ref().is_some_and(|proven| proven.number != edition.number)
    }

    /// What it must hear, now and if the version on trial fails.
    pub fn wanted(&self) -> Vec<TopicFilter> {
        let mut wanted: Vec<TopicFilter> = Vec::new();
        for edition in self.current() {
            for filter in &edition.manifest.subscribe {
                if !wanted.contains(filter) {
                    wanted.push(filter.clone());
                }
            }
        }
        wanted
    }

    /// Messages come to it from the router.
    pub fn is_routed(&self) -> bool {
        !self.is_shadow && self.serving().is_some()
    }

    pub fn jobs_under_way(&self) -> usize {
        self.current().chain(&self.retired).map(|edition| edition.jobs.get() as usize).sum()
    }

    pub fn is_quarantined(&self) -> bool {
        self.quarantine.is_paused()
    }
}

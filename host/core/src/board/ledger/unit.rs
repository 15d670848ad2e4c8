//! A message from its admission until everything that it caused is committed.

use std::sync::Arc;

use super::Settled;
use super::fan_out::FanOut;
use super::unsent::Place;
use crate::board::dispatch::Ticket;
use crate::board::ids::UnitId;
use crate::board::receipt::Receipt;
use crate::board::rollout::Observed;
use crate::message::Message;
use crate::request::Response;
use crate::store::Commit;

pub(crate) struct Unit {
    pub(super) arrival: u64,
    /// Memory that the unit holds.
    pub(super) bytes: usize,
    pub(crate) message: Arc<Message>,
    /// Functions that the message went through before.
    pub(crate) hops: u32,
    pub(crate) fan_out: FanOut,
    pub(crate) receipt: Receipt,
    /// Receipts of the same message on other connections, or under the same id.
    pub(super) copies: Vec<Receipt>,
    pub(super) jobs_left: usize,
    /// Committed after the units of its topic that came before.
    pub(super) is_in_line: bool,
    /// `Some` if one version and its shadow both run the message.
    pub(crate) compared: Option<Box<Compared>>,
    /// Settings changed while it was under way: a version and its shadow may have run it with different ones.
    pub(crate) settings_changed: bool,
    pub(crate) commit: Commit,
    /// What the commit frees of state, by the name under which that is stored.
    pub(super) freed: Vec<(Arc<str>, u64)>,
    /// Jobs that the commit parks.
    pub(super) tickets: Vec<Ticket>,
    pub(super) message_id: Option<Box<str>>,
    /// Where it waits to be sent behind others that changed the same scopes.
    pub(super) unsent: Vec<Place>,
    /// What a request is answered. `None`: its function had nothing to say.
    pub(super) response: Option<Response>,
    pub(super) is_turned_away: bool,
}

/// Memory of a unit beside its message and what its functions made of it: its place here, in the window and in the workers'
/// queues.
const UNIT_BYTES: usize = 1000;

/// What the active version and its shadow made of a message.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) active: Option<Observed>,
    pub(crate) shadow: Option<Observed>,
}

impl Unit {
    /// `fan_out`: publications that the message may cause.
    pub(crate) fn new(
        message: Arc<Message>,
        (hops, fan_out): (u32, u32),
        receipt: Receipt,
        jobs: usize,
        commit: Commit,
    ) -> Self {
        let message_id = commit.message_id.clone();
        Self {
            arrival: 0,
            bytes: UNIT_BYTES + message.bytes(),
            message,
            hops,
            fan_out: FanOut::new(fan_out, jobs),
            receipt,
            copies: Vec::new(),
            jobs_left: jobs,
            is_in_line: false,
            compared: None,
            settings_changed: false,
            commit,
            freed: Vec::new(),
            tickets: Vec::new(),
            message_id,
            unsent: Vec::new(),
            response: None,
            is_turned_away: false,
        }
    }

    pub(crate) fn jobs_left(&self) -> usize {
        self.jobs_left
    }

    /// Everything that came of it is on disk.
    pub(super) fn settled(self, id: UnitId) -> Settled {
        let Self { arrival, receipt, copies, message_id, response, is_turned_away, .. } = self;
        Settled { receipt, copies, message_id, unit: Some(id), arrival, response, is_turned_away }
    }

    /// Deliveries keep the order of their topic. Ticks and parked jobs have another order.
    pub(super) fn takes_part_in_line(&self) -> bool {
        matches!(self.receipt, Receipt::Mqtt { .. } | Receipt::Request(_) | Receipt::None)
    }
}

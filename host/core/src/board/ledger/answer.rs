//! What a request is answered, once its unit is on disk.

use super::{Ledger, Unit};
use crate::board::ids::UnitId;
use crate::board::receipt::Receipt;
use crate::request::Response;

impl Ledger {
    /// Sets the answer, if the message is a request.
    pub(crate) fn answer(&mut self, id: UnitId, response: Response) {
        if !self.unit(id).is_request() {
            return;
        }
        self.hold(id, response.bytes());
        self.unit_mut(id).response = Some(response);
    }

    /// The request was turned away: a repeat of it is not one, and it is not counted among the messages.
    pub(crate) fn turn_away(&mut self, id: UnitId, response: Response) {
        self.answer(id, response);
        let unit = self.unit_mut(id);
        unit.is_turned_away = true;
        unit.commit.message_id = None;
    }
}

impl Unit {
    pub(crate) fn is_request(&self) -> bool {
        matches!(self.receipt, Receipt::Request(_))
    }

    /// Whether it is counted among the messages: once, with its first commit.
    pub(crate) fn is_counted(&self) -> bool {
        matches!(self.receipt, Receipt::Mqtt { .. } | Receipt::Request(_) | Receipt::None) && !self.is_turned_away
    }

    /// Puts the answer into the commit if repeats may come.
    pub(super) fn keep_answer(&mut self) {
        if self.is_request() && self.commit.message_id.is_some() {
            self.commit.response = Some(self.response.as_ref().unwrap_or(&Response::DONE).kept());
        }
    }
}

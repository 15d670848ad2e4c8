//! The way of a request over HTTP: to the one function whose route it matches, and back with the answer.
//!
//! A request is a message like any other: the same limits, order, state, trials and dead letters. It has no second way into
//! the board, so what cannot be taken now is answered at once, and nothing of it is kept.
//!
//! ```text
//! request ─▶ room? ─▶ route ─▶ seen before? ─▶ unit ─▶ one commit ─▶ answer
//!              │ 503    │ 404, 405   │ in progress: waits for the first
//!              ▼        ▼            └ committed: the answer that is kept
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::Board;
use super::ids::FunctionNo;
use super::input::{Delivery, Effect};
use super::intake::Admission;
use super::ledger::Settled;
use super::receipt::Receipt;
use super::rollout::Edition;
use super::size;
use crate::forward::{FAN_OUT, HOPS};
use crate::message::ID_PROPERTY;
use crate::request::{IDEMPOTENCY_KEY, Request, RequestId, Response};
use crate::store::{Commit, DeadLetterId, StoreRequest};
use crate::trace::{TRACEPARENT, TRACESTATE};

/// Longest `Idempotency-Key`.
const MAX_KEY_BYTES: usize = 255;

/// Requests that are not answered, and answers that were not handed out.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    open: BTreeSet<RequestId>,
    ready: VecDeque<(RequestId, Response)>,
    /// Dead letters of requests whose commit is on disk.
    letters: BTreeMap<RequestId, DeadLetterId>,
}

impl Requests {
    /// Answers a request, once.
    pub(super) fn close(&mut self, id: RequestId, response: Response) {
        self.letters.remove(&id);
        if self.open.remove(&id) {
            self.ready.push_back((id, response));
        }
    }

    pub(super) fn numbered(&mut self, letters: Vec<(RequestId, DeadLetterId)>) {
        self.letters.extend(letters);
    }

    pub(super) fn poll(&mut self) -> Option<Effect> {
        self.ready.pop_front().map(|(id, response)| Effect::Respond { id, response })
    }

    /// What was under way may have been committed or not.
    pub(super) fn store_failed(&mut self) {
        for id in std::mem::take(&mut self.open) {
            let why =
                "the disk failed: whether the request took effect is not known; repeat it with its Idempotency-Key";
            self.ready.push_back((id, Response::unavailable(why)));
        }
        self.letters.clear();
    }

    /// Everything that came of the message is on disk, or it had no effect.
    pub(super) fn settled(&mut self, settled: &Settled) {
        let ids = std::iter::once(&settled.receipt).chain(&settled.copies).filter_map(|receipt| match receipt {
            Receipt::Request(id) => Some(*id),
            _ => None,
        });
        let ids: Vec<RequestId> = ids.collect();
        let dead_letter = ids.first().and_then(|id| self.letters.remove(id));
        for id in ids {
            let response = settled.response.clone().unwrap_or(Response::DONE);
            self.close(id, Response { dead_letter: dead_letter.or(response.dead_letter), ..response });
        }
    }
}

impl Board {
    pub(super) fn handle_request(&mut self, request: Request) {
        let id = request.id;
        self.requests.open.insert(id);
        if let Err(response) = self.take_request(request) {
            self.requests.close(id, response);
        }
    }

    /// `Err`: the answer, where nothing is kept of the request.
    fn take_request(&mut self, request: Request) -> Result<(), Response> {
        self.check_room()?;
        let id = request.id;
        let (number, delivery) = self.route_request(request)?;
        match self.intake.receive(&delivery) {
            Admission::New { message_id, .. } => return self.run_request(id, number, delivery, message_id),
            Admission::InFlight { unit, .. } => match self.ledger.contains(unit) {
                true => self.ledger.add_receipt(unit, Receipt::Request(id)),
                false => self.broken("a message in flight has a unit"),
            },
            Admission::Known { message_id, .. } => {
                self.ledger.request(StoreRequest::LoadResponse { request: id, message_id });
            }
            Admission::Committed => return Err(repeated()),
        }
        self.metrics.received.inc();
        self.metrics.redelivered.inc();
        Ok(())
    }

    fn check_room(&mut self) -> Result<(), Response> {
        let most = usize::from(self.config.receive_maximum);
        if self.store_failed {
            return Err(Response::unavailable("the disk fails: nothing can be stored"));
        }
        if self.is_ending {
            return Err(Response::unavailable("the board is ending"));
        }
        if self.caution.is_on() && self.ledger.len() > 0 {
            return Err(Response::unavailable("the board takes one message at a time after several crashes"));
        }
        if self.requests.open.len() > most || self.ledger.bytes() >= self.config.budget.intake() {
            return Err(Response::unavailable("too many messages are in processing"));
        }
        if self.has_backlog() {
            return Err(Response::unavailable("too many messages wait for the function"));
        }
        Ok(())
    }

    /// The function whose route the request matches, and the message. No two functions of a board have overlapping routes.
    fn route_request(&self, request: Request) -> Result<(FunctionNo, Delivery), Response> {
        let topic = request.path.topic();
        let mut allowed = Vec::new();
        for (number, function) in self.rollout.functions().filter(|(_, function)| function.is_routed()) {
            let Some(edition) = function.serving_for(&topic) else { continue };
            for route in &edition.manifest().http {
                let Some(parameters) = route.parameters(&request.path) else { continue };
                if route.method() == request.method {
                    return Ok((number, delivery(&request, topic, parameters, edition)?));
                }
                allowed.push(route.method().as_str());
            }
        }
        match &allowed[..] {
            [] => Err(Response::text(404, "no function takes this path")),
            _ => {
                let allowed = allowed.join(", ");
                let response = Response::text(405, format!("this path takes {allowed}"));
                Err(Response { allow: Some(allowed.into()), ..response })
            }
        }
    }

    fn run_request(
        &mut self,
        id: RequestId,
        number: FunctionNo,
        delivery: Delivery,
        message_id: Option<Box<str>>,
    ) -> Result<(), Response> {
        if let Some(failure) = size::refuse(&delivery, self.config.max_payload_bytes) {
            return Err(Response::failure(&failure).0);
        }
        let topic: Arc<str> = String::from_utf8_lossy(&delivery.topic).into();
        let function = self.rollout.function(number);
        if function.pauses.is_closed(&topic, self.now.monotonic) {
            let why = format!("{} is paused for this path because it kept failing", function.name);
            return Err(Response::unavailable(&why));
        }
        self.metrics.received.inc();
        let commit = Commit { message_id: message_id.clone(), request: Some(id), ..Commit::default() };
        let limits = self.limits(&delivery.properties);
        let message = Arc::new(self.message(delivery, topic));
        let mut functions = vec![number];
        let unit = self.add_unit(message, limits, Receipt::Request(id), &mut functions, commit);
        self.intake.admit(&Receipt::None, message_id.as_deref(), unit);
        if self.caution.is_on() && self.is_guilty(unit) {
            self.refuse_guilty(unit, &functions);
            return Ok(());
        }
        for function in functions {
            self.start(unit, function);
        }
        Ok(())
    }

    /// The store has read the answer to an earlier request under the same id.
    pub(super) fn response_loaded(&mut self, id: RequestId, response: Option<Response>) {
        self.requests.close(id, response.unwrap_or_else(repeated));
    }
}

/// Of a repeat whose first answer is not kept any more.
fn repeated() -> Response {
    Response::text(409, "this request was processed before, and its answer is not kept any more")
}

fn delivery(
    request: &Request,
    topic: String,
    parameters: Vec<(&str, &str)>,
    edition: &Rc<Edition>,
) -> Result<Delivery, Response> {
    let mut properties = request.properties(parameters, &edition.manifest().http_headers);
    // As a webhook of a board sends them: to end loops, and for traces.
    for name in [HOPS, FAN_OUT, TRACEPARENT, TRACESTATE] {
        properties.extend(request.header(name).map(|value| (name.to_owned(), value.to_owned())));
    }
    if let Some(key) = request.header(IDEMPOTENCY_KEY) {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(Response::text(400, format!("Idempotency-Key has 1 to {MAX_KEY_BYTES} bytes")));
        }
        properties.push((ID_PROPERTY.to_owned(), key.to_owned()));
    }
    Ok(Delivery {
        topic: Bytes::from(topic),
        payload: request.body.clone(),
        content_type: request.header("content-type").map(ToOwned::to_owned),
        properties,
        response_topic: None,
        correlation_data: None,
        subscriptions: Vec::new(),
        dup: false,
        retained: false,
        ack: None,
    })
}

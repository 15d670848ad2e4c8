//! Whether an order is carried out. Pure rules, in this order; the first that fails is the reason:
//!
//! envelope → signature → function and target → redelivery → expiry → serial → permissions of the key → manifest → module or code

use super::envelope::SignedEnvelope;
use super::host::{Capabilities, Chosen};
use super::keys::{Keys, TrustedKey};
use super::payload::{Install, Order, OrderChange};
use super::reason::{Reason, Refusal};
use super::record::Line;
use super::topics::Target;
use crate::config;
use crate::key::KeyId;
use crate::manifest::{FEEDBACK_LOOP, Manifest};
use crate::message::Digest;
use crate::sandbox::Class;

/// How far a serial may jump: Unix time in milliseconds fits from the beginning, and nobody reaches the end in one order.
const MOST_AHEAD: u64 = 1 << 42;
/// An order may be issued by a clock that is a little ahead.
pub const CLOCK_SLACK_MS: u64 = 24 * 3_600_000;

/// The board, as far as an order must fit it.
pub struct Board<'a> {
    pub node: &'a str,
    pub groups: &'a [String],
    pub host: Capabilities,
    pub deploy: &'a config::Deploy,
    pub ceilings: &'a config::Functions,
    /// Unix time, where it can be believed.
    pub now_ms: Option<u64>,
    /// The latest issue of any accepted order.
    pub floor_ms: u64,
}

/// A message under a topic of deploying.
pub struct Delivered<'a> {
    pub target: &'a Target,
    pub function: &'a str,
    pub envelope: &'a [u8],
}

/// An order that is signed by a trusted key and for this board.
#[derive(Debug)]
pub struct Authentic<'k> {
    pub order: Order,
    pub payload: Digest,
    pub signers: Vec<&'k TrustedKey>,
}

/// An order that is to be carried out.
#[derive(Debug)]
pub struct Accepted {
    pub order: Order,
    pub payload: Digest,
    /// Those whose permissions cover it.
    pub signers: Vec<KeyId>,
    /// Of an install: what this board takes of it.
    pub chosen: Option<Chosen>,
    /// Whether all that signed it may send code.
    pub is_by_code_senders: bool,
    /// What it adds to the floor.
    pub floor_ms: u64,
}

impl<'k> Authentic<'k> {
    pub fn read(delivered: &Delivered<'_>, keys: &'k Keys, board: &Board<'_>) -> Result<Self, Refusal> {
        let envelope = SignedEnvelope::parse(delivered.envelope)?;
        let (payload, signers) = envelope.verify(keys)?;
        let digest = super::digest(payload);
        let order = Order::parse(payload)?;
        let wrong = |detail| Err(Refusal::new(Reason::WrongTarget, detail));
        if *order.function != *delivered.function {
            return wrong(format!("signed for function {}, and came for {}", order.function, delivered.function));
        }
        if order.target != *delivered.target {
            return wrong(format!("signed for {}, and came for {}", order.target, delivered.target));
        }
        let is_us = match &order.target {
            Target::Node(node) => **node == *board.node,
            Target::Group(group) => board.groups.iter().any(|ours| **ours == **group),
        };
        if !is_us {
            return wrong(format!("for {}; this is node {} of groups {:?}", order.target, board.node, board.groups));
        }
        Ok(Self { order, payload: digest, signers })
    }

    /// `line`: what was accepted for this function before.
    pub fn accept(self, line: &Line, board: &Board<'_>) -> Result<Accepted, Refusal> {
        let Self { order, payload, signers } = self;
        check_times(&order, board)?;
        check_serial(order.serial, line)?;
        let permitted = |key: &&TrustedKey| match &order.change {
            OrderChange::Keys(_) => key.may_change_keys(),
            _ => key.may_change(&order.function),
        };
        let all = signers.clone();
        let mut signers = filter(signers, permitted)?;
        let send_code = all.iter().try_for_each(|key| key.may_send_code());
        let mut chosen = None;
        if let OrderChange::Install(install) = &order.change {
            let manifest = check_manifest(&order, install, board.ceilings)?;
            signers = filter(signers, |key| key.may_use(&manifest))?;
            let class = Class::for_memory(manifest.limits.memory_bytes.get());
            let chosen = chosen.insert(board.host.choose(install, class)?);
            if chosen.is_code {
                // Of all: a second signature must not lend its permission to what only the first one vouches for.
                send_code.clone()?;
            }
            chosen.module.check(board.deploy.max_module_bytes.get())?;
        }
        let signers = signers.into_iter().map(TrustedKey::id).collect();
        // A clock that is years ahead must not make all later orders look expired.
        let floor_ms = match board.now_ms {
            Some(now_ms) => order.issued_at_ms.min(now_ms.saturating_add(CLOCK_SLACK_MS)),
            None => order.issued_at_ms,
        };
        let is_by_code_senders = send_code.is_ok();
        Ok(Accepted { order, payload, signers, chosen, is_by_code_senders, floor_ms })
    }
}

fn check_times(order: &Order, board: &Board<'_>) -> Result<(), Refusal> {
    let expired = |detail| Err(Refusal::new(Reason::Expired, detail));
    let Order { issued_at_ms, expires_at_ms, .. } = *order;
    if expires_at_ms < issued_at_ms {
        return expired(format!("it expires ({expires_at_ms} ms) before it was issued ({issued_at_ms} ms)"));
    }
    let floor_ms = match board.now_ms {
        Some(now_ms) if expires_at_ms < now_ms => {
            let secs = (now_ms - expires_at_ms) / 1000;
            return expired(format!("it expired {secs} s ago; push it again"));
        }
        // Without a clock a floor may be wrong that a clock shows to be.
        Some(now_ms) => board.floor_ms.min(now_ms.saturating_add(CLOCK_SLACK_MS)),
        None => board.floor_ms,
    };
    if expires_at_ms < floor_ms {
        return expired(format!(
            "it expired ({expires_at_ms} ms) before the latest order that this board accepted was issued ({floor_ms} ms)"
        ));
    }
    Ok(())
}

fn check_serial(serial: u64, line: &Line) -> Result<(), Refusal> {
    let highest = match line.serial {
        Some(highest) if serial <= highest => {
            let detail = format!("serial {serial} is not above {highest}, the highest that was accepted; raise it");
            return Err(Refusal::new(Reason::ReplayedSerial, detail));
        }
        highest => highest.unwrap_or(0),
    };
    if serial - highest > MOST_AHEAD {
        let detail =
            format!("serial {serial} is more than {MOST_AHEAD} above {highest}; use the Unix time in milliseconds");
        return Err(Refusal::new(Reason::SerialTooHigh, detail));
    }
    Ok(())
}

fn check_manifest(order: &Order, install: &Install, ceilings: &config::Functions) -> Result<Manifest, Refusal> {
    let json = install.manifest.to_json();
    let manifest = Manifest::from_json(&json, None).map_err(|problems| {
        let is_loop = problems.errors().any(|problem| problem.what.starts_with(FEEDBACK_LOOP));
        let reason = if is_loop { Reason::FeedbackLoop } else { Reason::InvalidManifest };
        Refusal::new(reason, one_line(&problems))
    })?;
    let invalid = |detail| Err(Refusal::new(Reason::InvalidManifest, detail));
    if *manifest.name != *order.function {
        return invalid(format!("the manifest is of {}, and the order for {}", manifest.name, order.function));
    }
    if manifest.serial != order.serial {
        return invalid(format!("the manifest has serial {}, and the order {}", manifest.serial, order.serial));
    }
    Manifest::from_json(&json, Some(ceilings)).map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))
}

pub fn one_line(problems: &config::Problems) -> String {
    let mut line = problems.to_string().replace('\n', "; ");
    if let Some((end, _)) = line.char_indices().nth(500) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// Those that may, or why the first may not.
fn filter<'k>(
    signers: Vec<&'k TrustedKey>,
    permitted: impl Fn(&&'k TrustedKey) -> Result<(), Refusal>,
) -> Result<Vec<&'k TrustedKey>, Refusal> {
    let mut refusal = None;
    let kept: Vec<&TrustedKey> = signers
        .into_iter()
        .filter(|key| permitted(key).map_err(|why| refusal.get_or_insert(why).reason).is_ok())
        .collect();
    match refusal {
        Some(refusal) if kept.is_empty() => Err(refusal),
        _ => Ok(kept),
    }
}

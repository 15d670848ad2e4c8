//! Rules for accepting an order, in this order. The first rule that fails is the reason of the refusal:
//!
//! envelope → signature → function and target → redelivery → expiry → serial → permissions of the key → manifest → module or code

use super::code::{Abi, Capabilities};
use super::envelope::SignedEnvelope;
use super::keys::{Keys, TrustedKey};
use super::payload::{Install, Module, Order, OrderChange};
use super::reason::{Reason, Refusal};
use super::record::{Acceptance, OrderHistory, StoredVersion};
use super::topics::Target;
use crate::config;
use crate::config::machine::Machine;
use crate::isa::Class;
use crate::manifest::{FEEDBACK_LOOP, Manifest};
use crate::message::Digest;

/// Largest jump of a serial. Unix time in milliseconds fits as the first serial, and one order cannot exhaust the range.
const MAX_SERIAL_JUMP: u64 = 1 << 42;
/// Time before which no board runs this program, for boards that have never known the time: 2026-11-27.
const RELEASED_MS: u64 = 1_795_737_600_000;
/// Without a synced clock, how far above the latest time believed an order may move the floor of its key.
pub(crate) const MAX_FLOOR_AHEAD_MS: u64 = 400 * 24 * 3_600_000;
/// Tolerated error of the clock that issued an order.
pub(crate) const CLOCK_SLACK_MS: u64 = 24 * 3_600_000;

/// The facts of a board that an order must fit.
pub(crate) struct Board<'a> {
    pub(crate) node: &'a str,
    pub(crate) groups: &'a [String],
    pub(crate) host: Capabilities,
    pub(crate) deploy: &'a config::Deploy,
    pub(crate) ceilings: &'a config::Ceilings,
    pub(crate) sinks: &'a config::Sinks,
    pub(crate) machine: &'a Machine,
    /// Unix time, if the clock is synced.
    pub(crate) now_ms: Option<u64>,
    /// The accepted orders of all functions, and of the keys.
    pub(crate) histories: Vec<&'a OrderHistory>,
    /// Latest time that a synced clock has shown since the start.
    pub(crate) believed_ms: u64,
}

/// An order for this board that is signed by a trusted key.
#[derive(Debug)]
pub(crate) struct Authentic<'k> {
    pub(crate) order: Order,
    pub(crate) payload: Digest,
    pub(crate) signers: Vec<&'k TrustedKey>,
}

/// An order that is to be carried out.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) order: Order,
    pub(crate) payload: Digest,
    /// What an install brings for this board, and the chunks of its module or code.
    pub(crate) chosen: Option<(StoredVersion, Module)>,
    /// Whether all signers may send native code.
    pub(crate) is_by_code_senders: bool,
    pub(crate) acceptance: Acceptance,
}

impl<'k> Authentic<'k> {
    /// Verifies an envelope that arrived under the topic of `target` and `function`.
    pub(crate) fn read(
        envelope: &[u8],
        target: &Target,
        function: &str,
        keys: &'k Keys,
        board: &Board<'_>,
    ) -> Result<Self, Refusal> {
        let envelope = SignedEnvelope::parse(envelope)?;
        let (payload, signers) = envelope.verify(keys)?;
        let digest = super::digest(payload);
        let order = Order::parse(payload)?;
        let wrong = |detail| Err(Refusal::new(Reason::WrongTarget, detail));
        if *order.function != *function {
            return wrong(format!("signed for function {}, but sent to {function}", order.function));
        }
        if order.target != *target {
            return wrong(format!("signed for {}, but sent to {target}", order.target));
        }
        let is_this_board = match &order.target {
            Target::Node(node) => **node == *board.node,
            Target::Group(group) => board.groups.iter().any(|ours| **ours == **group),
        };
        if !is_this_board {
            return wrong(format!("for {}; this is node {} of groups {:?}", order.target, board.node, board.groups));
        }
        Ok(Self { order, payload: digest, signers })
    }

    /// `history`: the accepted orders for this function.
    pub(crate) fn accept(self, history: &OrderHistory, board: &Board<'_>) -> Result<Accepted, Refusal> {
        let Self { order, payload, signers } = self;
        check_times(order.issued_at_ms, order.expires_at_ms, board)?;
        let signers = filter(signers, |key| board.check_floor(order.expires_at_ms, key))?;
        check_serial(order.serial, history)?;
        let permitted = |key: &&TrustedKey| match &order.change {
            OrderChange::Keys(_) => key.may_change_keys(),
            OrderChange::Settings(_) => key.may_set(&order.function),
            _ => key.may_change(&order.function),
        };
        let all = signers.clone();
        let mut signers = filter(signers, permitted)?;
        let send_code = all.iter().try_for_each(|key| key.may_send_code());
        let mut chosen = None;
        if let OrderChange::Install(install) = &order.change {
            let manifest = check_manifest(&order, install, board)?;
            if let Some(invalid) = board.sinks.refusal(&manifest) {
                return Err(Refusal::new(Reason::InvalidManifest, format!("sink: {invalid}")));
            }
            signers = filter(signers, |key| key.may_use(&manifest))?;
            let (module, is_code) = choose(install, board.host, &manifest)?;
            if is_code {
                // Required of all signers: a second signature must not lend its permission to the first.
                send_code.clone()?;
            }
            module.check(board.deploy.max_module_bytes.get())?;
            // Permissions of two keys do not add up: those of one count.
            let widest = signers.iter().min_by_key(|key| !key.topics.is_empty());
            let confined_to = widest.map(|key| key.topics.clone()).unwrap_or_default();
            let (manifest, digest) = (install.manifest.clone(), module.digest);
            chosen = Some((StoredVersion { manifest, digest, is_code, confined_to }, module.clone()));
        }
        let signers = signers.into_iter().map(TrustedKey::id).collect();
        let issued_at_ms = order.issued_at_ms.min(board.latest_floor_ms());
        let acceptance = Acceptance { signers, issued_at_ms, now_ms: board.now_ms };
        let is_by_code_senders = send_code.is_ok();
        Ok(Accepted { order, payload, chosen, is_by_code_senders, acceptance })
    }
}

impl Board<'_> {
    /// Highest floor that counts: an issuer's clock that is years ahead must not make later orders look expired for ever.
    fn latest_floor_ms(&self) -> u64 {
        if let Some(now_ms) = self.now_ms {
            return now_ms.saturating_add(CLOCK_SLACK_MS);
        }
        let believed = self.histories.iter().map(|history| history.believed_ms).chain([self.believed_ms, RELEASED_MS]);
        believed.max().unwrap_or(0).saturating_add(MAX_FLOOR_AHEAD_MS)
    }

    /// Refuses an order that expired before its key issued another that was accepted.
    pub(crate) fn check_floor(&self, expires_at_ms: u64, key: &TrustedKey) -> Result<(), Refusal> {
        let floors = self.histories.iter().map(|history| history.floor(key.id()).unwrap_or(0).max(history.floor_ms));
        let floor_ms = floors.max().unwrap_or(0).min(self.latest_floor_ms());
        if expires_at_ms >= floor_ms {
            return Ok(());
        }
        let detail = format!(
            "it expired ({expires_at_ms} ms) before the latest order of key {} that this board accepted was issued \
             ({floor_ms} ms); push it again, and check the clock of the PC",
            key.name
        );
        Err(Refusal::new(Reason::Expired, detail))
    }
}

/// Returns the module, which needs no trust, or else code, and whether it is code.
fn choose<'i>(install: &'i Install, host: Capabilities, manifest: &Manifest) -> Result<(&'i Module, bool), Refusal> {
    if let Some(module) = install.module.as_ref().filter(|_| host.takes_module(manifest.names_script())) {
        return Ok((module, false));
    }
    let abi = host.abi(Class::for_memory(manifest.limits.memory_bytes.get()));
    match install.code.iter().find(|code| Some(code.abi()) == abi) {
        Some(code) => Ok((&code.module, true)),
        None => Err(Refusal::new(Reason::NoCode, no_code(install, host, abi.as_ref()))),
    }
}

/// Explains why nothing in an install runs on the board.
fn no_code(install: &Install, host: Capabilities, abi: Option<&Abi>) -> String {
    let Some(abi) = abi else {
        return "this board has no compiler, and code for its processor cannot be compiled elsewhere".into();
    };
    let why = if host.has_compiler { "the order brings no module" } else { "this board has no compiler" };
    let brought = match &install.code[..] {
        [] => "none".to_owned(),
        code => code.iter().map(|code| code.abi().to_string()).collect::<Vec<_>>().join(", "),
    };
    format!(
        "{why} and runs code for {abi}; the order brings {brought}: push with `--code {}` and sedge {}",
        abi.target,
        env!("CARGO_PKG_VERSION")
    )
}

pub(crate) fn check_times(issued_at_ms: u64, expires_at_ms: u64, board: &Board<'_>) -> Result<(), Refusal> {
    let expired = |detail| Err(Refusal::new(Reason::Expired, detail));
    if expires_at_ms < issued_at_ms {
        return expired(format!("it expires ({expires_at_ms} ms) before it was issued ({issued_at_ms} ms)"));
    }
    match board.now_ms {
        Some(now_ms) if expires_at_ms < now_ms => {
            let secs = (now_ms - expires_at_ms) / 1000;
            expired(format!("it expired {secs} s ago; push it again"))
        }
        _ => Ok(()),
    }
}

fn check_serial(serial: u64, history: &OrderHistory) -> Result<(), Refusal> {
    let highest = match history.serial {
        Some(highest) if serial <= highest => {
            let detail = format!("serial {serial} is not above {highest}, the highest accepted one; raise it");
            return Err(Refusal::new(Reason::ReplayedSerial, detail));
        }
        highest => highest.unwrap_or(0),
    };
    if serial - highest > MAX_SERIAL_JUMP {
        let detail = format!(
            "serial {serial} is more than {MAX_SERIAL_JUMP} above {highest}; use the Unix time in milliseconds"
        );
        return Err(Refusal::new(Reason::SerialTooHigh, detail));
    }
    Ok(())
}

fn check_manifest(order: &Order, install: &Install, board: &Board<'_>) -> Result<Manifest, Refusal> {
    let json = install.manifest.to_json();
    let manifest = Manifest::from_json(&json, None).map_err(|problems| {
        let is_loop = problems.errors().any(|problem| problem.what.starts_with(FEEDBACK_LOOP));
        let reason = if is_loop { Reason::FeedbackLoop } else { Reason::InvalidManifest };
        Refusal::new(reason, one_line(&problems))
    })?;
    let invalid = |detail| Err(Refusal::new(Reason::InvalidManifest, detail));
    if *manifest.name != *order.function {
        return invalid(format!("the manifest is for {}, but the order for {}", manifest.name, order.function));
    }
    if manifest.serial != order.serial {
        return invalid(format!("the manifest has serial {}, but the order {}", manifest.serial, order.serial));
    }
    if !manifest.at.is_empty()
        && let Err(problem) = board.machine.zone(manifest.zone.as_deref())
    {
        return invalid(format!("zone: {problem}"));
    }
    let ceilings = Some(board.ceilings);
    Manifest::from_json(&json, ceilings).map_err(|problems| Refusal::new(Reason::OverLimit, one_line(&problems)))
}

pub(crate) fn one_line(problems: &config::Problems) -> String {
    let mut line = problems.to_string().replace('\n', "; ");
    if let Some((end, _)) = line.char_indices().nth(500) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

/// Returns the permitted keys, or the refusal of the first key if none is permitted.
pub(crate) fn filter<'k>(
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

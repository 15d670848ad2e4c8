//! Functions that run as one core module: the main module of their component (`main_module.rs`). The host itself lifts and
//! lowers values, which the engine does for whole components.
//!
//! A message costs one instance, without a component's type tables, adapter instances and resource tables.
//! `docs/decisions/0009-one-instance.md` has the figures.

use bytes::Bytes;
use wasmtime::{AsContextMut, Instance, InstancePre, Module, ModuleExport, Result, Store, bail, format_err};

use super::SandboxError;
use super::abi::{CallContext, GuestExports, Reader, u32_at, u64_at};
use super::host::HostState;
use super::imports::Imports;
use super::run::shorten;
use sedge_core::grants::Grants;
use sedge_core::limits::OUTPUT_BYTES;
use sedge_core::message::{Alert, AlertStatus, Failure, FailureCode, Message, Output, Publication, Severity, Verdict};

// Exports of a main module, by the canonical ABI's names.
pub(crate) const MEMORY: &str = "memory";
pub(crate) const REALLOC: &str = "cabi_realloc";
pub(crate) const HANDLE: &str = "sedge:function/handler@0.1.0#handle";

/// Size of an alert's label in the host, beside its texts. Counts towards [`transfer_bytes`](sedge_core::limits::Limits::transfer_bytes).
const LABEL_BYTES: usize = 48;

/// The parameters of the handler: topic, payload, content type, properties, time, whether the clock is synced, attempt.
type Params = (u32, u32, u32, u32, u32, u32, u32, u32, u32, u64, u32, u32);

/// A module ready to be instantiated.
pub struct ModuleFunction {
    pre: InstancePre<HostState>,
    memory: ModuleExport,
    realloc: ModuleExport,
    handle: ModuleExport,
}

impl ModuleFunction {
    pub fn new(imports: &mut Imports, module: &Module, grants: Grants) -> Result<Self, SandboxError> {
        // `imports` may define interfaces that were granted to other functions.
        for import in module.imports() {
            grants.check_name(import.module())?;
        }
        let export = |name: &str| {
            let export = module.get_export_index(name);
            export.ok_or_else(|| SandboxError::World(format_err!("the module does not export `{name}`")))
        };
        Ok(Self {
            memory: export(MEMORY)?,
            realloc: export(REALLOC)?,
            handle: export(HANDLE)?,
            pre: imports.connect(module).map_err(SandboxError::World)?,
        })
    }

    /// Sets up an instance and has it handle the message.
    pub fn call(&self, store: &mut Store<HostState>, message: &Message) -> Result<Verdict> {
        let instance = self.pre.instantiate(&mut *store)?;
        let guest = self.guest(store, &instance)?;
        let handle = func(store, &instance, &self.handle)?.typed::<Params, u32>(&*store)?;

        let mut call = CallContext::new(store.as_context_mut(), guest);
        let params = lower(&mut call, message)?;
        // From here on the guest may call the host.
        let guest = call.into_guest();
        store.data_mut().guest = Some(guest);
        let at = handle.call(&mut *store, params)?;

        let Some(guest) = store.data_mut().guest.take() else {
            bail!("the guest returned from within a call to the host")
        };
        let mut call = CallContext::new(store.as_context_mut(), guest);
        lift(&mut call.reader().0, at)
    }

    fn guest(&self, store: &mut Store<HostState>, instance: &Instance) -> Result<GuestExports> {
        let memory = instance.get_module_export(&mut *store, &self.memory).and_then(|export| export.into_memory());
        Ok(GuestExports {
            memory: memory.ok_or_else(|| format_err!("`{MEMORY}` is not a memory"))?,
            realloc: func(store, instance, &self.realloc)?.typed(&*store)?,
        })
    }
}

fn func(store: &mut Store<HostState>, instance: &Instance, export: &ModuleExport) -> Result<wasmtime::Func> {
    let export = instance.get_module_export(&mut *store, export).and_then(|export| export.into_func());
    export.ok_or_else(|| format_err!("an export is not a function"))
}

fn lower(call: &mut CallContext<'_>, message: &Message) -> Result<Params> {
    let topic = call.lower_bytes(message.topic.as_bytes())?;
    let payload = call.lower_bytes(&message.payload)?;
    let content_type = message.content_type.as_deref();
    let kind = content_type.map(|kind| call.lower_bytes(kind.as_bytes())).transpose()?.unwrap_or_default();
    let properties = call.lower_string_pairs(message.properties.iter().map(|(name, value)| (&**name, &**value)))?;
    Ok((
        u32_at(&topic, 0),
        u32_at(&topic, 4),
        u32_at(&payload, 0),
        u32_at(&payload, 4),
        content_type.is_some().into(),
        u32_at(&kind, 0),
        u32_at(&kind, 4),
        u32_at(&properties, 0),
        u32_at(&properties, 4),
        message.received_at_ms,
        message.clock_synced.into(),
        message.attempt,
    ))
}

/// ```text
/// result<list<output>, failure>    +0 is failure | +8 outputs
/// failure                                        | +8 case: 0 reject +16 reason | 1 retry +16 after ms +24 reason
/// ```
fn lift(reader: &mut Reader<'_>, at: u32) -> Result<Verdict> {
    let result: &[u8; 32] = reader.record(at, 8)?;
    Ok(match (result[0], result[8]) {
        (0, _) => {
            let outputs = reader.list(u32_at(result, 8), u32_at(result, 12), 8, OUTPUT_BYTES)?;
            Verdict::Done(outputs.iter().map(|output| lift_output(reader, output)).collect::<Result<_>>()?)
        }
        (1, 0) => {
            let detail = shorten(text(reader, result, 16)?.to_owned());
            Verdict::Failed(Failure { code: FailureCode::Rejected, detail })
        }
        (1, 1) => {
            Verdict::Retry { after_ms: u64_at(result, 16), reason: shorten(text(reader, result, 24)?.to_owned()) }
        }
        (1, other) | (other, _) => bail!("unexpected discriminant: {other}"),
    })
}

/// ```text
/// output        +0 case: 0 alert, 1 forward, 2 publish | +8 its content
/// alert         +0 key, +8 severity, +9 status, +12 summary, +24 has value, +32 value, +40 labels
/// publication   +0 topic, +8 payload, +16 has content type, +20 content type, +28 retain
/// ```
fn lift_output(reader: &mut Reader<'_>, output: &[u8; 56]) -> Result<Output> {
    let (case, content) = (output[0], &output[8..]);
    Ok(match case {
        0 => Output::Alert(lift_alert(reader, content)?),
        1 => Output::Forward(lift_publication(reader, content)?),
        2 => Output::Publish(lift_publication(reader, content)?),
        other => bail!("unexpected discriminant: {other}"),
    })
}

fn lift_alert(reader: &mut Reader<'_>, alert: &[u8]) -> Result<Alert> {
    let labels = reader.list::<16>(u32_at(alert, 40), u32_at(alert, 44), 4, LABEL_BYTES)?;
    Ok(Alert {
        key: text(reader, alert, 0)?.to_owned(),
        severity: match alert[8] {
            0 => Severity::Info,
            1 => Severity::Warning,
            2 => Severity::Critical,
            other => bail!("unexpected discriminant: {other}"),
        },
        status: match alert[9] {
            0 => AlertStatus::Firing,
            1 => AlertStatus::Resolved,
            other => bail!("unexpected discriminant: {other}"),
        },
        summary: text(reader, alert, 12)?.to_owned(),
        value: is_some(alert[24])?.then(|| f64::from_bits(u64_at(alert, 32))),
        labels: labels
            .iter()
            .map(|label| Ok((text(reader, label, 0)?.to_owned(), text(reader, label, 8)?.to_owned())))
            .collect::<Result<_>>()?,
    })
}

fn lift_publication(reader: &mut Reader<'_>, publication: &[u8]) -> Result<Publication> {
    Ok(Publication {
        topic: text(reader, publication, 0)?.into(),
        payload: Bytes::copy_from_slice(reader.bytes(u32_at(publication, 8), u32_at(publication, 12))?),
        content_type: match is_some(publication[16])? {
            true => Some(text(reader, publication, 20)?.into()),
            false => None,
        },
        retain: publication[28] != 0,
    })
}

fn text<'a>(reader: &mut Reader<'a>, record: &[u8], place: usize) -> Result<&'a str> {
    reader.text(u32_at(record, place), u32_at(record, place + 4))
}

fn is_some(discriminant: u8) -> Result<bool> {
    match discriminant {
        0 | 1 => Ok(discriminant == 1),
        other => bail!("unexpected discriminant: {other}"),
    }
}

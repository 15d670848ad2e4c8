//! Functions that run as one core module: the main module of their component (`main_module.rs`). The host itself lifts and
//! lowers values, which the engine does for whole components.
//!
//! A message costs one instance, without a component's type tables, adapter instances and resource tables.
//! `docs/decisions/0009-one-instance.md` has the figures.

use std::sync::OnceLock;

use bytes::Bytes;
use wasmtime::{
    AsContextMut, Instance, InstancePre, Module, ModuleExport, Result, Store, Trap, TypedFunc, WasmParams, bail,
    format_err,
};

use super::SandboxError;
use super::abi::{CallContext, GuestExports, PtrLen, Reader, u32_at, u64_at};
use super::contract::{Contract, is_run};
use super::host::HostState;
use super::imports::Imports;
use super::run::{OverStack, shorten};
use super::wasi::Library;
use sedge_core::grants::{Grants, is_of_library};
use sedge_core::limits::OUTPUT_BYTES;
use sedge_core::message::{
    Alert, AlertStatus, Failure, FailureCode, Message, Output, Publication, Reply, Severity, Verdict, Wake,
};

// Exports of a main module, by the canonical ABI's names.
pub(crate) const MEMORY: &str = "memory";
pub(crate) const REALLOC: &str = "cabi_realloc";
/// Runs what must run before the handler. Components call it when all their parts are connected.
pub(crate) const INITIALIZE: &str = "_initialize";
/// Exported by what `sedge build` links.
const STACK_POINTER: &str = "__stack_pointer";

/// Size of an alert's label in the host, beside its texts. Counts towards [`transfer_bytes`](sedge_core::limits::Limits::transfer_bytes).
const LABEL_BYTES: usize = 48;

/// The parameters of the handler of contract 0.1.0: topic, payload, content type, properties, time, whether the clock is
/// synced, attempt. Those of 0.2.0 are more than the canonical ABI passes one by one: it gets the address of a record.
type Params = (u32, u32, u32, u32, u32, u32, u32, u32, u32, u64, u32, u32);

/// A module ready to be instantiated.
pub struct ModuleFunction {
    pre: InstancePre<HostState>,
    memory: ModuleExport,
    realloc: ModuleExport,
    entry: ModuleExport,
    /// Of the handler. `None` for a program for WASI 0.2.
    contract: Option<Contract>,
    /// Called before the entry, once per instance.
    initialize: Option<ModuleExport>,
    /// What the manifest grants to a function with a standard library of WASI.
    library: Option<Grants>,
    stack: Option<Stack>,
}

/// The pointer to a guest's stack, which grows down to the address 0.
struct Stack {
    pointer: ModuleExport,
    /// Where it begins. Read from the first instance.
    bytes: OnceLock<u32>,
}

impl ModuleFunction {
    pub fn new(imports: &mut Imports, module: &Module, grants: Grants) -> Result<Self, SandboxError> {
        // `imports` may define interfaces that were granted to other functions.
        grants.check(module.imports().map(|import| import.module()))?;
        let function = Self::connect(imports, module)?;
        let has_library = function.contract.is_none() || module.imports().any(|it| is_of_library(it.module()));
        Ok(Self { library: has_library.then_some(grants), ..function })
    }

    /// Finds the exports and connects the imports, whatever the grants.
    pub(crate) fn connect(imports: &mut Imports, module: &Module) -> Result<Self, SandboxError> {
        let export = |name: &str| {
            let export = module.get_export_index(name);
            export.ok_or_else(|| SandboxError::World(format_err!("the module does not export `{name}`")))
        };
        let contract = Contract::of_exports(module.exports().map(|export| export.name()))?;
        let run = || module.exports().map(|export| export.name()).find(|name| is_run(name));
        let entry = contract.map(Contract::handle).or_else(run);
        let entry = entry.ok_or_else(|| SandboxError::World(format_err!("the module exports no handler")))?;
        Ok(Self {
            memory: export(MEMORY)?,
            realloc: export(REALLOC)?,
            entry: export(entry)?,
            contract,
            initialize: module.get_export_index(INITIALIZE),
            library: None,
            stack: module.get_export_index(STACK_POINTER).map(|pointer| Stack { pointer, bytes: OnceLock::new() }),
            pre: imports.connect(module).map_err(SandboxError::World)?,
        })
    }

    /// Sets up an instance and has it handle the message. `name`: of the function.
    pub fn call(&self, store: &mut Store<HostState>, message: &Message, name: &str) -> Result<Verdict> {
        let instance = self.instantiate(store)?;
        let guest = self.guest(store, &instance)?;
        let Some(contract) = self.contract else { return self.run(store, &instance, guest, message, name) };
        store.data_mut().library = self.library.map(|grants| Box::new(Library::new(message, grants)));
        let ended = self
            .initialize(store, &instance, guest)
            .and_then(|guest| self.handle(store, &instance, guest, message, |reader, at| lift(reader, at, contract)));
        Library::end(store.data_mut(), ended.is_err());
        ended
    }

    /// Runs a program for WASI 0.2 to its end.
    fn run(
        &self,
        store: &mut Store<HostState>,
        instance: &Instance,
        guest: GuestExports,
        message: &Message,
        name: &str,
    ) -> Result<Verdict> {
        let host = store.data_mut();
        host.library = Some(Box::new(Library::of_program(message, self.library.unwrap_or_default(), name, host)));
        let ended = self.initialize(store, instance, guest).and_then(|guest| {
            let run = func(store, instance, &self.entry)?.typed::<(), u32>(&*store)?;
            store.data_mut().guest = Some(guest);
            run.call(&mut *store, ())
        });
        Library::end_program(store.data_mut(), ended)
    }

    fn initialize(
        &self,
        store: &mut Store<HostState>,
        instance: &Instance,
        guest: GuestExports,
    ) -> Result<GuestExports> {
        let Some(initialize) = &self.initialize else { return Ok(guest) };
        let initialize = func(store, instance, initialize)?.typed::<(), ()>(&*store)?;
        store.data_mut().guest = Some(guest);
        initialize.call(&mut *store, ())?;
        store.data_mut().guest.take().ok_or_else(|| format_err!("the guest returned from within a call to the host"))
    }

    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> Result<Instance> {
        self.pre.instantiate(store)
    }

    /// Has an instance handle the message. `lift` reads the result.
    pub(crate) fn handle(
        &self,
        store: &mut Store<HostState>,
        instance: &Instance,
        guest: GuestExports,
        message: &Message,
        lift: impl FnOnce(&mut Reader<'_>, u32) -> Result<Verdict>,
    ) -> Result<Verdict> {
        if let Some(Stack { pointer, bytes }) = &self.stack
            && bytes.get().is_none()
        {
            let _ = bytes.set(stack_pointer(store, instance, pointer).unwrap_or_default());
        }
        let handle = func(store, instance, &self.entry)?;
        let entered = match self.contract {
            Some(Contract::V0_1) => {
                let handle = handle.typed::<Params, u32>(&*store)?;
                enter(store, guest, &handle, |call| lower_params(call, message))
            }
            Some(Contract::V0_2) | None => {
                let handle = handle.typed::<u32, u32>(&*store)?;
                enter(store, guest, &handle, |call| lower_record(call, message))
            }
        };
        let at = match entered {
            Ok(at) => at,
            Err(error) => return Err(self.explain(store, instance, error)),
        };
        let Some(guest) = store.data_mut().guest.take() else {
            bail!("the guest returned from within a call to the host")
        };
        let mut call = CallContext::new(store.as_context_mut(), guest);
        lift(&mut call.reader().0, at)
    }

    /// A fault in memory is named after its usual cause: safe code has hardly another.
    fn explain(&self, store: &mut Store<HostState>, instance: &Instance, error: wasmtime::Error) -> wasmtime::Error {
        let Some(Stack { pointer, bytes }) = &self.stack else { return error };
        let stack_bytes = bytes.get().copied().unwrap_or_default();
        if error.downcast_ref() != Some(&Trap::MemoryOutOfBounds) || stack_bytes == 0 {
            return error;
        }
        let is_certain = stack_pointer(store, instance, pointer).is_some_and(|at| at > stack_bytes);
        error.context(OverStack { stack_bytes, is_certain })
    }

    pub(crate) fn guest(&self, store: &mut Store<HostState>, instance: &Instance) -> Result<GuestExports> {
        let memory = instance.get_module_export(&mut *store, &self.memory).and_then(|export| export.into_memory());
        Ok(GuestExports {
            memory: memory.ok_or_else(|| format_err!("`{MEMORY}` is not a memory"))?,
            realloc: func(store, instance, &self.realloc)?.typed(&*store)?,
        })
    }
}

/// Lowers the message and calls the handler. Returns the address of its result.
fn enter<P: WasmParams>(
    store: &mut Store<HostState>,
    guest: GuestExports,
    handle: &TypedFunc<P, u32>,
    lower: impl FnOnce(&mut CallContext<'_>) -> Result<P>,
) -> Result<u32> {
    let mut call = CallContext::new(store.as_context_mut(), guest);
    let params = lower(&mut call)?;
    // From here on the guest may call the host.
    let guest = call.into_guest();
    store.data_mut().guest = Some(guest);
    handle.call(store, params)
}

fn stack_pointer(store: &mut Store<HostState>, instance: &Instance, pointer: &ModuleExport) -> Option<u32> {
    let global = instance.get_module_export(&mut *store, pointer)?.into_global()?;
    global.get(&mut *store).i32().map(i32::cast_unsigned)
}

fn func(store: &mut Store<HostState>, instance: &Instance, export: &ModuleExport) -> Result<wasmtime::Func> {
    let export = instance.get_module_export(&mut *store, export).and_then(|export| export.into_func());
    export.ok_or_else(|| format_err!("an export is not a function"))
}

fn lower_params(call: &mut CallContext<'_>, message: &Message) -> Result<Params> {
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
/// message   +0 topic, +8 payload, +16 has content type, +20 content type, +28 properties, +40 received at, +48 clock synced
///           +52 attempt, +56 retained, +60 has response topic, +64 response topic, +72 has correlation data, +76 correlation data
/// ```
fn lower_record(call: &mut CallContext<'_>, message: &Message) -> Result<u32> {
    const BYTES: usize = 88;
    let at = call.allocate(8, BYTES)?;
    let mut record = [0; BYTES];
    record[0..8].copy_from_slice(&call.lower_bytes(message.topic.as_bytes())?);
    record[8..16].copy_from_slice(&call.lower_bytes(&message.payload)?);
    if let Some(content_type) = &message.content_type {
        set_some(&mut record, 16, &call.lower_bytes(content_type.as_bytes())?);
    }
    let properties = message.properties.iter().map(|(name, value)| (&**name, &**value));
    record[28..36].copy_from_slice(&call.lower_string_pairs(properties)?);
    record[40..48].copy_from_slice(&message.received_at_ms.to_le_bytes());
    record[48] = message.clock_synced.into();
    record[52..56].copy_from_slice(&message.attempt.to_le_bytes());
    record[56] = message.retained.into();
    if let Some(topic) = &message.response_topic {
        set_some(&mut record, 60, &call.lower_bytes(topic.as_bytes())?);
    }
    if let Some(data) = &message.correlation_data {
        set_some(&mut record, 72, &call.lower_bytes(data)?);
    }
    call.write(at, &record)?;
    Ok(at)
}

fn set_some(record: &mut [u8], place: usize, value: &PtrLen) {
    record[place] = 1;
    record[place + 4..place + 12].copy_from_slice(value);
}

/// ```text
/// result<list<output>, failure>    +0 is failure | +8 outputs
/// failure                                        | +8 case: 0 reject +16 reason | 1 retry +16 after ms +24 reason
/// ```
pub(crate) fn lift(reader: &mut Reader<'_>, at: u32, contract: Contract) -> Result<Verdict> {
    let result: &[u8; 32] = reader.record(at, 8)?;
    Ok(match (result[0], result[8]) {
        (0, _) => {
            let (at, len) = (u32_at(result, 8), u32_at(result, 12));
            Verdict::Done(match contract {
                Contract::V0_1 => lift_outputs::<56>(reader, at, len, contract)?,
                Contract::V0_2 => lift_outputs::<72>(reader, at, len, contract)?,
            })
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

fn lift_outputs<const N: usize>(reader: &mut Reader<'_>, at: u32, len: u32, contract: Contract) -> Result<Vec<Output>> {
    let outputs = reader.list::<N>(at, len, 8, OUTPUT_BYTES)?;
    outputs.iter().map(|output| lift_output(reader, output, contract)).collect()
}

/// ```text
/// output        +0 case: 0 alert, 1 forward, 2 publish, from 0.2.0 on 3 wake, 4 reply | +8 its content
/// alert         +0 key, +8 severity, +9 status, +12 summary, +24 has value, +32 value, +40 labels, from 0.2.0 on +48 sink
/// publication   +0 topic, +8 payload, +16 content type, +28 retain, from 0.2.0 on +32 sink
/// wake          +0 name, +8 has time, +16 after ms
/// reply         +0 status, +4 content type, +16 body
/// option        +0 is some, +4 text
/// ```
fn lift_output(reader: &mut Reader<'_>, output: &[u8], contract: Contract) -> Result<Output> {
    let (case, content) = (output[0], &output[8..]);
    Ok(match (case, contract) {
        (0, _) => Output::Alert(lift_alert(reader, content, contract)?),
        (1, _) => Output::Forward(lift_publication(reader, content, contract)?),
        (2, _) => Output::Publish(lift_publication(reader, content, contract)?),
        (3, Contract::V0_2) => Output::Wake(Wake {
            name: text(reader, content, 0)?.into(),
            after_ms: is_some(content[8])?.then(|| u64_at(content, 16)),
        }),
        (4, Contract::V0_2) => Output::Reply(Reply {
            status: u16::from_le_bytes([content[0], content[1]]),
            content_type: optional_text(reader, content, 4)?,
            body: Bytes::copy_from_slice(reader.bytes(u32_at(content, 16), u32_at(content, 20))?),
        }),
        (other, _) => bail!("unexpected discriminant: {other}"),
    })
}

fn lift_alert(reader: &mut Reader<'_>, alert: &[u8], contract: Contract) -> Result<Alert> {
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
        sink: lift_sink(reader, alert, 48, contract)?,
    })
}

fn lift_publication(reader: &mut Reader<'_>, publication: &[u8], contract: Contract) -> Result<Publication> {
    Ok(Publication {
        topic: text(reader, publication, 0)?.into(),
        payload: Bytes::copy_from_slice(reader.bytes(u32_at(publication, 8), u32_at(publication, 12))?),
        content_type: optional_text(reader, publication, 16)?,
        retain: publication[28] != 0,
        sink: lift_sink(reader, publication, 32, contract)?,
    })
}

fn lift_sink(reader: &mut Reader<'_>, output: &[u8], place: usize, contract: Contract) -> Result<Option<Box<str>>> {
    match contract {
        Contract::V0_1 => Ok(None),
        Contract::V0_2 => optional_text(reader, output, place),
    }
}

fn optional_text(reader: &mut Reader<'_>, record: &[u8], place: usize) -> Result<Option<Box<str>>> {
    Ok(match is_some(record[place])? {
        true => Some(text(reader, record, place + 4)?.into()),
        false => None,
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

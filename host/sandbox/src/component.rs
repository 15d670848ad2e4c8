//! Functions that run as whole components: the engine connects their parts and lifts and lowers values.

use bytes::Bytes;
use wasmtime::component::{Component, Linker};
use wasmtime::{Result, Store};

use super::SandboxError;
use super::host::{self, HostState};
use super::run::shorten;
use bindings::exports::sedge::function::handler;
use sedge_core::grants::Grants;
use sedge_core::limits::{MAX_HANDLES, OUTPUT_BYTES};
use sedge_core::message::{Alert, AlertStatus, Failure, FailureCode, Message, Output, Publication, Severity, Verdict};

pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../guest-sdk/wit",
        world: "function",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::super::host::Bucket,
            "wasi:keyvalue/atomics.cas": super::super::host::Cas,
        },
        require_store_data_send: false,
    });
}

const _: () = assert!(size_of::<handler::Output>() <= OUTPUT_BYTES);

/// A component ready to be instantiated.
pub struct ComponentFunction(bindings::FunctionPre<HostState>);

impl ComponentFunction {
    pub fn new(component: &Component, grants: Grants) -> Result<Self, SandboxError> {
        let engine = component.engine();
        let mut linker = Linker::new(engine);
        host::add_to_linker(&mut linker).map_err(SandboxError::Engine)?;
        crate::grants::add_to_linker(grants, &mut linker).map_err(SandboxError::Engine)?;
        for (import, _) in component.component_type().imports(engine) {
            grants.check_name(import)?;
        }
        let pre = linker.instantiate_pre(component).and_then(bindings::FunctionPre::new);
        Ok(Self(pre.map_err(SandboxError::World)?))
    }

    /// Sets up an instance and has it handle the message.
    pub fn call(&self, store: &mut Store<HostState>, message: &Message) -> Result<Verdict> {
        store.set_hostcall_fuel(store.data().limits.transfer_bytes());
        store.set_max_component_handles(MAX_HANDLES);
        let properties: Vec<(&str, &str)> =
            message.properties.iter().map(|(name, value)| (&**name, &**value)).collect();
        let guest = self.0.instantiate(&mut *store)?;
        let ended = guest.sedge_function_handler().call_handle(
            store,
            handler::Message {
                topic: &message.topic,
                payload: &message.payload,
                content_type: message.content_type.as_deref(),
                properties: &properties,
                received_at_ms: message.received_at_ms,
                clock_synced: message.clock_synced,
                attempt: message.attempt,
            },
        )?;
        Ok(match ended {
            Ok(outputs) => Verdict::Done(outputs.into_iter().map(output).collect()),
            Err(handler::Failure::Reject(reason)) => {
                Verdict::Failed(Failure { code: FailureCode::Rejected, detail: shorten(reason) })
            }
            Err(handler::Failure::Retry(retry)) => {
                Verdict::Retry { after_ms: retry.after_ms, reason: shorten(retry.reason) }
            }
        })
    }
}

fn output(output: handler::Output) -> Output {
    match output {
        handler::Output::Alert(alert) => Output::Alert(Alert {
            key: alert.key,
            severity: match alert.severity {
                handler::Severity::Info => Severity::Info,
                handler::Severity::Warning => Severity::Warning,
                handler::Severity::Critical => Severity::Critical,
            },
            status: match alert.status {
                handler::AlertStatus::Firing => AlertStatus::Firing,
                handler::AlertStatus::Resolved => AlertStatus::Resolved,
            },
            summary: alert.summary,
            value: alert.value,
            labels: alert.labels,
        }),
        handler::Output::Forward(publication) => Output::Forward(self::publication(publication)),
        handler::Output::Publish(publication) => Output::Publish(self::publication(publication)),
    }
}

fn publication(publication: handler::Publication) -> Publication {
    Publication {
        topic: publication.topic.into(),
        payload: Bytes::from(publication.payload),
        content_type: publication.content_type.map(Into::into),
        retain: publication.retain,
    }
}

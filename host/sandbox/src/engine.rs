//! The engine profile: the settings that every function is compiled for and runs under.
//!
//! A fresh instance per message is affordable because it needs no system call. Memory comes from a small pool. Explicit
//! compares check its bounds instead of guard pages. It is not mapped copy-on-write, and zeros are written over the little
//! that a function touched. `docs/decisions/0001-engine-profile.md` has the figures.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Config, CustomCodeMemory, Engine, InstanceAllocationStrategy, OperatorCost, PoolingAllocationConfig};

use super::SandboxError;
use sedge_core::isa::Class;
#[cfg(feature = "compiler")]
use sedge_core::isa::Isa;

/// Interval between ticks of the epoch, by which deadlines are kept: a function is stopped at most this much late.
pub const EPOCH: Duration = Duration::from_millis(5);

/// Price of growing memory by a page. The host zeroes 64 KiB, which takes as long as about so many instructions.
const FUEL_PER_GROWN_PAGE: u8 = 255;

// Limits of a component's parts. They are checked before anything is compiled, and the pool has the same sizes.
pub(crate) const MAX_CORE_INSTANCES: u32 = 16;
pub(crate) const MAX_TABLES: u32 = 4;
pub(crate) const MAX_TABLE_ELEMENTS: u32 = 10_000;

/// Part of a memory that is wiped by writing zeros. Pages above it are released to the kernel instead.
const KEEP_RESIDENT_BYTES: usize = 256 * 1024;

/// The same for scripts: all that the engine starts with, and room for what a message needs.
const SCRIPT_KEEP_RESIDENT_BYTES: usize = 512 * 1024;
/// An interpreter needs more of the native stack than a function. Its own stack, in its memory, is to end first, because
/// then a script gets an exception.
const SCRIPT_STACK_BYTES: usize = 1536 << 10;

/// Settings that code of this class is compiled with and runs under. An engine refuses code that was compiled with others.
fn config(class: Class) -> Config {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .operator_cost(operator_cost())
        .epoch_interruption(true)
        .concurrency_support(false)
        .memory_init_cow(false)
        .memory_reservation(class.memory_bytes() as u64)
        .memory_reservation_for_growth(0)
        .memory_guard_size(0)
        .guard_before_linear_memory(false)
        .memory_may_move(false)
        .max_wasm_stack(256 * 1024)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(8))
        .generate_address_map(false)
        .native_unwind_info(false);
    // A function gives the same bits on every processor: x86 and ARM disagree about the sign and the payload of a NaN.
    #[cfg(feature = "compiler")]
    config.cranelift_opt_level(wasmtime::OptLevel::Speed).cranelift_nan_canonicalization(true);
    config
}

fn operator_cost() -> OperatorCost {
    let mut cost = OperatorCost::new();
    cost.variable.memory_grow_per_page = FUEL_PER_GROWN_PAGE;
    cost
}

/// How code becomes executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CodeMemory {
    /// The engine copies it and makes the copy executable.
    #[default]
    Engine,
    /// The code is mapped from a sealed file, or nothing is run.
    Sealed,
}

/// Settings of an engine that runs functions of this class.
pub fn running_config(class: Class) -> Config {
    let mut config = config(class);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(class)));
    config
}

/// Makes an engine that runs scripts of this class. Code that is compiled for the class runs in it.
pub(crate) fn for_scripts(class: Class, code_memory: CodeMemory) -> Result<Engine, SandboxError> {
    let mut pool = pool(class);
    pool.linear_memory_keep_resident(SCRIPT_KEEP_RESIDENT_BYTES);
    let mut config = config(class);
    config.max_wasm_stack(SCRIPT_STACK_BYTES).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    make(config, code_memory)
}

/// Makes an engine that runs functions of this class, one at a time.
pub(crate) fn for_running(class: Class, code_memory: CodeMemory) -> Result<Engine, SandboxError> {
    make(running_config(class), code_memory)
}

fn make(mut config: Config, code_memory: CodeMemory) -> Result<Engine, SandboxError> {
    if code_memory == CodeMemory::Sealed {
        config.with_custom_code_memory(Some(Arc::new(SealedCodeMemory)));
    }
    Engine::new(&config).map_err(SandboxError::Engine)
}

/// Memory of engines that make nothing executable.
struct SealedCodeMemory;

impl CustomCodeMemory for SealedCodeMemory {
    fn required_alignment(&self) -> usize {
        1
    }

    fn publish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }

    fn unpublish_executable(&self, _: *const u8, _: usize) -> wasmtime::Result<()> {
        Ok(())
    }
}

/// Instances of an engine's pool: one that runs and one spare.
const INSTANCES: u32 = 2;
/// Engines per class: one for functions, one for scripts.
const ENGINES: u32 = 2;

/// Addresses that a process reserves for the pools of all its engines. Most of them are never touched.
pub fn reserved_bytes() -> u64 {
    let memory = Class::Small.memory_bytes() + Class::Large.memory_bytes();
    let rest = MAX_TABLES as usize * MAX_TABLE_ELEMENTS as usize * size_of::<usize>()
        + MAX_CORE_INSTANCES as usize * MAX_CORE_INSTANCE_BYTES
        + MAX_COMPONENT_INSTANCE_BYTES;
    u64::from(ENGINES * INSTANCES) * (memory + 2 * rest) as u64
}

const MAX_CORE_INSTANCE_BYTES: usize = 64 * 1024;
const MAX_COMPONENT_INSTANCE_BYTES: usize = 256 * 1024;

fn pool(class: Class) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(INSTANCES)
        .total_tables(INSTANCES * MAX_TABLES)
        .total_core_instances(INSTANCES * MAX_CORE_INSTANCES)
        .total_component_instances(INSTANCES)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(1)
        .max_tables_per_component(MAX_TABLES)
        .max_memories_per_module(1)
        .max_tables_per_module(MAX_TABLES)
        .max_memory_size(class.memory_bytes())
        .table_elements(MAX_TABLE_ELEMENTS as usize)
        .max_core_instance_size(MAX_CORE_INSTANCE_BYTES)
        .max_component_instance_size(MAX_COMPONENT_INSTANCE_BYTES)
        .max_unused_warm_slots(INSTANCES)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 * 1024);
    pool
}

/// Makes an engine that compiles for this host or another target.
#[cfg(feature = "compiler")]
pub(crate) fn for_compiling(class: Class, target: Option<Isa>) -> Result<Engine, SandboxError> {
    Engine::new(&compiling(class, target)?).map_err(SandboxError::Engine)
}

#[cfg(feature = "compiler")]
fn compiling(class: Class, target: Option<Isa>) -> Result<Config, SandboxError> {
    let mut config = config(class);
    // The compile process has a memory limit, and must not reserve a pool that it never uses.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    if let Some(target) = target {
        // Also for this machine's own target, so that nothing is inferred from this processor.
        config.target(crate::targets::triple(target)).map_err(SandboxError::Engine)?;
    }
    Ok(config)
}

#[cfg(all(test, feature = "operator", target_arch = "x86_64"))]
mod tests {
    use std::hash::{Hash as _, Hasher as _};

    use siphasher::sip::SipHasher13;
    use wasmtime::ModuleVersionStrategy;

    use super::*;
    use sedge_core::isa::{SETTINGS_VERSION, WASMTIME_VERSION};

    /// [`SETTINGS_VERSION`], and hashes of the settings of each class and target at that version.
    const RECORDED: (u32, [u64; 6]) = (
        3,
        [
            0x652e_9786_8f08_f30e,
            0x0a9d_e64e_cf9c_eab6,
            0xe5a7_4402_9978_50f7,
            0x36be_1e72_98ad_4044,
            0x47d3_2771_7a1b_4866,
            0x61fe_3983_94b2_66e0,
        ],
    );

    #[test]
    fn the_settings_version_is_raised_when_settings_change() {
        let mut hashes = Vec::new();
        for class in [Class::Small, Class::Large] {
            for target in Isa::ALL {
                let mut config = compiling(class, Some(target)).unwrap();
                // Patch releases of one major version read each other's code.
                config.module_version(ModuleVersionStrategy::None).unwrap();
                let mut hasher = SipHasher13::new();
                Engine::new(&config).unwrap().precompile_compatibility_hash().hash(&mut hasher);
                hashes.push(hasher.finish());
            }
        }
        assert_eq!(
            (SETTINGS_VERSION, &hashes[..]),
            (RECORDED.0, &RECORDED.1[..]),
            "the settings changed, and code that was compiled with the old ones does not run: raise SETTINGS_VERSION by \
             one and record both here"
        );
    }

    #[test]
    fn the_wasmtime_version_is_that_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let (_, wasmtime) = lock.split_once("name = \"wasmtime\"\nversion = \"").unwrap();
        assert_eq!(
            wasmtime.split('.').next(),
            Some(&*WASMTIME_VERSION.to_string()),
            "raise WASMTIME_VERSION, and see about SETTINGS_VERSION"
        );
    }
}

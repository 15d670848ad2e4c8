//! The engine profile: what every function is compiled for and runs under.
//!
//! A fresh instance for every message is affordable because nothing of it goes through the kernel: memory comes from a
//! small pool, is bounds-checked by explicit compares instead of guard pages, is not mapped copy-on-write, and is wiped
//! by writing zeros over the little that a function touched. `docs/decisions/0001-engine-profile.md` has the figures.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OperatorCost, PoolingAllocationConfig};

#[cfg(feature = "compiler")]
use super::Isa;
use super::SandboxError;
use super::sealed::SealedCodeMemory;

/// Pages of 64 KiB are zeroed by the host on growth: about what that many simple instructions cost.
const FUEL_PER_GROWN_PAGE: u8 = 255;

/// What a function may be made of. Checked before anything is compiled; the pool is sized by the same numbers.
pub const MAX_CORE_INSTANCES: u32 = 16;
pub const MAX_TABLES: u32 = 4;
pub const MAX_TABLE_ELEMENTS: u32 = 10_000;

/// Counts the changes of what [`config`] says, and of what is compiled of a component: code that was compiled elsewhere names
/// the number it was made with. Raise it when a test says so.
pub const SETTINGS_VERSION: u32 = 2;

/// Wasmtime's major version. Code of another one is refused by it, and so is told apart before.
pub const WASMTIME_VERSION: u32 = 48;

/// How much of a memory is wiped by writing zeros; what lies above is given back to the kernel instead.
const KEEP_RESIDENT_BYTES: usize = 256 * 1024;

/// A size class of functions. Each has an engine of its own, because the size of a slot is a property of the compiled
/// code; small functions do not pay for large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Up to 4 MiB: everything written for Sedge.
    Small,
    /// Up to 64 MiB: functions with an interpreter inside.
    Large,
}

impl Class {
    pub fn for_memory(bytes: usize) -> Self {
        if bytes <= Self::Small.memory_bytes() { Self::Small } else { Self::Large }
    }

    pub const fn memory_bytes(self) -> usize {
        match self {
            Self::Small => 4 << 20,
            Self::Large => 64 << 20,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// The configuration that code of this class is compiled with and runs under. Whoever compiles and whoever runs must
/// use the same one; the engine refuses code that was compiled with another.
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
    #[cfg(feature = "compiler")]
    config.cranelift_opt_level(wasmtime::OptLevel::Speed);
    config
}

fn operator_cost() -> OperatorCost {
    let mut cost = OperatorCost::new();
    cost.variable.memory_grow_per_page = FUEL_PER_GROWN_PAGE;
    cost
}

/// Who makes code executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CodeMemory {
    /// The engine, in memory of its own.
    #[default]
    Engine,
    /// Nobody: it is so already, or nothing is run.
    Sealed,
}

/// An engine to run functions with: one at a time, so the pool holds one instance and one spare.
pub fn for_running(class: Class, executable: CodeMemory) -> Result<Engine, SandboxError> {
    let mut config = config(class);
    config.allocation_strategy(pool(class));
    if executable == CodeMemory::Sealed {
        config.with_custom_code_memory(Some(Arc::new(SealedCodeMemory)));
    }
    Engine::new(&config).map_err(SandboxError::Engine)
}

/// The same by interpretation, on a machine that could compile.
#[cfg(feature = "pulley")]
pub fn interpreter(class: Class) -> Result<Engine, SandboxError> {
    let mut config = config(class);
    config.target("pulley64").map_err(SandboxError::Engine)?;
    config.allocation_strategy(pool(class));
    Engine::new(&config).map_err(SandboxError::Engine)
}

fn pool(class: Class) -> InstanceAllocationStrategy {
    const INSTANCES: u32 = 2;
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
        .max_core_instance_size(64 * 1024)
        .max_component_instance_size(256 * 1024)
        .max_unused_warm_slots(INSTANCES)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(64 * 1024);
    InstanceAllocationStrategy::Pooling(pool)
}

/// An engine to compile with, for this host or another target. It reserves no memory for instances.
#[cfg(feature = "compiler")]
pub fn for_compiling(class: Class, target: Option<Isa>) -> Result<Engine, SandboxError> {
    Engine::new(&compiling(class, target)?).map_err(SandboxError::Engine)
}

#[cfg(feature = "compiler")]
fn compiling(class: Class, target: Option<Isa>) -> Result<Config, SandboxError> {
    let mut config = config(class);
    // The compile child has its memory limited, and must not reserve a pool that it never uses.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    if let Some(target) = target {
        // Also where it is this machine's own: nothing is inferred from this processor then.
        config.target(target.triple()).map_err(SandboxError::Engine)?;
    }
    Ok(config)
}

#[cfg(all(test, feature = "operator", target_arch = "x86_64"))]
mod tests {
    use std::hash::{Hash as _, Hasher as _};

    use siphasher::sip::SipHasher13;
    use wasmtime::ModuleVersionStrategy;

    use super::*;

    /// What code of each class and target depends on, as it was when [`SETTINGS_VERSION`] got its number.
    const RECORDED: (u32, [u64; 6]) = (
        2,
        [
            0x8552_7d64_9494_7e0a,
            0xc6e1_b450_77fb_b096,
            0xe26a_2c17_b5be_2f87,
            0x7eef_dd42_f41c_ee93,
            0xfe42_0df8_7c0a_340f,
            0x1397_c032_9d1e_5817,
        ],
    );

    #[test]
    fn the_number_of_the_settings_is_raised_when_they_change() {
        let mut hashes = Vec::new();
        for class in [Class::Small, Class::Large] {
            for target in Isa::ALL {
                let mut config = compiling(class, Some(target)).unwrap();
                // Patches of one version read each other's code; which version it is, `WASMTIME_VERSION` says.
                config.module_version(ModuleVersionStrategy::None).unwrap();
                let mut hasher = SipHasher13::new();
                Engine::new(&config).unwrap().precompile_compatibility_hash().hash(&mut hasher);
                hashes.push(hasher.finish());
            }
        }
        assert_eq!(
            (SETTINGS_VERSION, &hashes[..]),
            (RECORDED.0, &RECORDED.1[..]),
            "code that was compiled elsewhere with these settings does not run with those: raise SETTINGS_VERSION by one and \
             record both here"
        );
    }

    #[test]
    fn the_version_is_that_of_the_lock_file() {
        let lock = include_str!("../../../Cargo.lock");
        let (_, wasmtime) = lock.split_once("name = \"wasmtime\"\nversion = \"").unwrap();
        assert_eq!(
            wasmtime.split('.').next(),
            Some(&*WASMTIME_VERSION.to_string()),
            "raise WASMTIME_VERSION, and see about SETTINGS_VERSION"
        );
    }
}

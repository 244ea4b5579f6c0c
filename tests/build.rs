//! Tells the benchmarks where the kernel object is that makes their packets: the agent's build script builds it with the
//! others, and the agent does not carry it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Ok(objects) = std::env::var("DEP_ENFORCER_OBJECTS") {
        println!("cargo::rustc-env=DRIVER_OBJECT={objects}/driver");
    }
}

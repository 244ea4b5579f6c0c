//! What the tests and the demo stand on: no product code, only the world around it.
//!
//! - [`lab`]: network namespaces, virtual links and processes that are removed whatever happens to the run;
//! - [`simulator`]: an inference server that speaks OpenAI's, vLLM's and dcgm-exporter's formats and queues for real;
//! - [`client`]: a load client that says what became of every request;
//! - [`packet`], [`world`], [`rig`]: frames, a policy with its surroundings, and the loaded kernel programs to try them on;
//! - [`plain`], [`generate`], [`model`], [`oracle`]: random policies and traffic, and two ways to say what should become of it;
//! - [`harness`]: the product under test: an agent in the lab, its command line, open streams, kernel objects;
//! - [`bench`], [`large`]: what things cost, and a policy as large as that takes;
//! - [`demo`]: governed traffic end to end, each step with its figures;
//! - [`privilege`]: how a test that needs root says that it cannot run.
#![forbid(unsafe_code)]

pub mod bench;
pub mod client;
pub mod demo;
pub mod generate;
pub mod harness;
pub mod histogram;
pub mod lab;
pub mod large;
pub mod model;
pub mod oracle;
pub mod packet;
pub mod plain;
pub mod privilege;
pub mod random;
pub mod rig;
pub mod simulator;
pub mod world;

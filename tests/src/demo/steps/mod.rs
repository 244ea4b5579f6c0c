//! The steps of the demo, in order. Each says what it does, measures it, and holds the figures against what was
//! promised; an error is kept for what the demo itself could not do.

mod admission;
mod books;
mod change;
mod failure;
mod load;

use super::report::Step;
use super::world::World;
use crate::harness::HarnessError;

/// One step: what it is called and what it does.
pub(super) type StepEntry = (
    &'static str,
    fn(&mut World, &mut Step<'_>) -> Result<(), HarnessError>,
);

/// Every step but the last, which takes the world away.
pub(super) const STEPS: [StepEntry; 10] = [
    (
        "A balancer, three GPU servers, three tenants: the policy is compiled into kernel maps",
        admission::start,
    ),
    (
        "Admitted tenants get streamed answers from their back ends, by weight",
        admission::admitted,
    ),
    (
        "Everyone else is refused, with a reason and a record",
        admission::refused,
    ),
    (
        "A noisy tenant is held to its rate; the others do not notice",
        load::noisy_neighbour,
    ),
    (
        "A GPU server reports saturation and gets fewer new connections",
        load::saturation,
    ),
    (
        "A rule is changed while traffic flows; open connections obey it",
        change::policy,
    ),
    ("A tenant is suspended, and resumed", change::suspension),
    (
        "GPU servers die: traffic fails over to compliant ones only",
        failure::back_ends_die,
    ),
    ("The books balance: packets, decisions, records", books::balance),
    (
        "The agent is killed: enforcement goes on, and a new agent takes over",
        failure::agent_dies,
    ),
];

pub(super) use books::{DETACH_TITLE, detach};

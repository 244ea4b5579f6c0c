//! Weighted max-min fairness: how much of a budget each of several gets.
//!
//! The method is that of water filling (Bertsekas, Gallager, *Data Networks*, 6.5.2, with weights): one level rises for
//! all, each gets its weight times the level, never less than its floor and never more than its wish, until the budget is
//! used up. So nobody could get more without taking it from somebody who has no more for its weight.

/// What one of them asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wish {
    /// How much it counts beside others; positive.
    pub weight: f64,
    /// What it gets in any case, even if that is more than there is.
    pub floor: f64,
    /// The most that it can use; not below the floor.
    pub most: f64,
}

/// What each gets, in the order of the wishes: together the budget, unless the floors are more or the wishes less.
#[must_use]
pub fn shares(budget: f64, wishes: &[Wish]) -> Vec<f64> {
    let level = level(budget, wishes);
    let share = |wish: &Wish| (wish.weight * level).max(wish.floor).min(wish.most);
    wishes.iter().map(share).collect()
}

/// The level at which the budget is used up; infinite if the wishes are less.
fn level(budget: f64, wishes: &[Wish]) -> f64 {
    // One who is above its floor rises with the level, from where its floor is reached to where its wish is.
    let mut turns: Vec<(f64, f64)> = Vec::with_capacity(2 * wishes.len());
    for wish in wishes {
        turns.push((wish.floor / wish.weight, wish.weight));
        turns.push((wish.most / wish.weight, -wish.weight));
    }
    turns.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let mut given: f64 = wishes.iter().map(|wish| wish.floor).sum();
    let (mut level, mut rising) = (0.0, 0.0);
    for (turn, weight) in turns {
        let needed = given + rising * (turn - level);
        if needed >= budget {
            break;
        }
        (given, level) = (needed, turn);
        rising += weight;
    }
    if given >= budget {
        return level;
    }
    // Sums of floating point numbers leave a trace where nobody rises any more.
    let smallest = wishes
        .iter()
        .map(|wish| wish.weight)
        .fold(f64::INFINITY, f64::min);
    if rising < smallest / 2.0 {
        return f64::INFINITY;
    }
    level + (budget - given) / rising
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wish(weight: f64, floor: f64, most: f64) -> Wish {
        Wish { weight, floor, most }
    }

    #[test]
    fn by_weight_between_floor_and_wish() {
        for (budget, wishes, expected) in [
            // By weight alone.
            (
                40.0,
                vec![wish(3.0, 0.0, 100.0), wish(1.0, 0.0, 100.0)],
                vec![30.0, 10.0],
            ),
            // Who wants less leaves the rest to the others.
            (
                40.0,
                vec![wish(3.0, 0.0, 12.0), wish(1.0, 0.0, 100.0)],
                vec![12.0, 28.0],
            ),
            // A floor comes first.
            (
                40.0,
                vec![wish(9.0, 0.0, 100.0), wish(1.0, 10.0, 100.0)],
                vec![30.0, 10.0],
            ),
            // And holds even if there is less.
            (
                10.0,
                vec![wish(1.0, 8.0, 20.0), wish(1.0, 7.0, 20.0)],
                vec![8.0, 7.0],
            ),
            // Enough for all.
            (
                99.0,
                vec![wish(1.0, 0.0, 20.0), wish(5.0, 3.0, 30.0)],
                vec![20.0, 30.0],
            ),
            (0.0, vec![wish(1.0, 0.0, 20.0)], vec![0.0]),
            (5.0, vec![], vec![]),
        ] {
            let given = shares(budget, &wishes);
            assert_eq!(given.len(), expected.len());
            for (is, should) in given.iter().zip(&expected) {
                assert!((is - should).abs() < 1e-9, "{budget} among {wishes:?}: {given:?}");
            }
        }
    }

    fn any_wish() -> impl Strategy<Value = Wish> {
        (1u32..=1000, 0u32..500, 0u32..5000).prop_map(|(weight, floor, more)| {
            wish(f64::from(weight), f64::from(floor), f64::from(floor + more))
        })
    }

    proptest! {
        #[test]
        fn nobody_could_get_more_without_taking_it_from_one_with_no_more_for_its_weight(
            wishes in proptest::collection::vec(any_wish(), 1..40),
            budget in 0.0f64..50_000.0,
        ) {
            let given = shares(budget, &wishes);
            let sum: f64 = given.iter().sum();
            let floors: f64 = wishes.iter().map(|wish| wish.floor).sum();
            let most: f64 = wishes.iter().map(|wish| wish.most).sum();
            prop_assert!((sum - budget.clamp(floors, most)).abs() < 1e-6 * (1.0 + budget), "{sum} of {budget}");
            for (wish, share) in wishes.iter().zip(&given) {
                prop_assert!(*share >= wish.floor && *share <= wish.most);
            }
            for (poor, has) in wishes.iter().zip(&given) {
                for (rich, more) in wishes.iter().zip(&given) {
                    let wants_more = *has < poor.most - 1e-6;
                    let could_give = *more > rich.floor + 1e-6;
                    if wants_more && could_give {
                        prop_assert!(more / rich.weight <= has / poor.weight + 1e-6);
                    }
                }
            }
        }

        #[test]
        fn more_for_all_is_less_for_nobody_and_the_order_does_not_matter(
            wishes in proptest::collection::vec(any_wish(), 1..40),
            budget in 0.0f64..50_000.0,
            more in 0.0f64..1000.0,
        ) {
            let (before, after) = (shares(budget, &wishes), shares(budget + more, &wishes));
            for (less, more) in before.iter().zip(&after) {
                prop_assert!(*more >= less - 1e-6);
            }
            let reversed: Vec<Wish> = wishes.iter().rev().copied().collect();
            for (one, other) in before.iter().zip(shares(budget, &reversed).iter().rev()) {
                prop_assert!((one - other).abs() < 1e-6);
            }
        }
    }
}

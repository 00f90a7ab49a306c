//! How many calls may be sent again: enough for a server that says goodbye, too few to double what an overloaded one gets.

use std::sync::atomic::{AtomicI64, Ordering};

/// What one call that is sent again costs; a call that was answered earns the configured percentage of it.
const COST: i64 = 100;

/// Shared by all calls of a channel.
#[derive(Debug)]
pub(super) struct Budget {
    /// In hundredths of a call.
    left: AtomicI64,
    most: i64,
    earned: i64,
}

impl Budget {
    /// `reserve` calls may be sent again without any having been answered, and `percent` of those that are.
    pub(super) fn new(reserve: u32, percent: u32) -> Self {
        let most = i64::from(reserve) * COST;
        Self { left: AtomicI64::new(most), most, earned: i64::from(percent) }
    }

    /// A call was answered.
    pub(super) fn earn(&self) {
        // It is full nearly always, and is then only read.
        if self.left.load(Ordering::Relaxed) < self.most {
            self.left.fetch_add(self.earned, Ordering::Relaxed);
        }
    }

    /// Whether a call may be sent again.
    pub(super) fn spend(&self) -> bool {
        let spend = |left: i64| (left >= COST).then_some(left - COST);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_is_earned_again_by_answers() {
        let budget = Budget::new(2, 20);
        assert!(budget.spend() && budget.spend() && !budget.spend());
        (0..5).for_each(|_| budget.earn());
        assert!(budget.spend() && !budget.spend());
        (0..1_000).for_each(|_| budget.earn());
        assert!(budget.spend() && budget.spend() && !budget.spend(), "no more than the reserve is kept");
    }

    #[test]
    fn without_a_reserve_nothing_is_sent_again() {
        let budget = Budget::new(0, 100);
        budget.earn();
        assert!(!budget.spend());
    }
}

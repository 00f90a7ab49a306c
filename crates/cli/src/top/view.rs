//! What is looked at: which page, which order, which pool; and what keys do to that. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::{Key, Sort, Watched};

/// A page of the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    /// All pools.
    #[default]
    List,
    /// Everything about one.
    Detail,
    /// Keys and columns explained.
    Help,
}

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) page: Page,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    /// Whether the screen stands still.
    pub(super) is_paused: bool,
    /// The pool that was chosen, wherever it stands now.
    pub(super) chosen: Option<Key>,
    /// Whether there are keys to press.
    pub(super) is_live: bool,
}

impl View {
    /// Does what a key asks for. Returns whether that was the end.
    pub(super) fn press(&mut self, key: KeyEvent, watched: &Watched) -> bool {
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
            KeyCode::Char('q') => return true,
            KeyCode::Esc if self.page == Page::List => return true,
            KeyCode::Esc => self.page = Page::List,
            KeyCode::Char('?' | 'h') => self.turn_to(Page::Help),
            KeyCode::Enter => self.turn_to(Page::Detail),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Down | KeyCode::Char('j') => self.choose(watched, |place, last| (place + 1).min(last)),
            KeyCode::Up | KeyCode::Char('k') => self.choose(watched, |place, _| place.saturating_sub(1)),
            KeyCode::Home => self.choose(watched, |_, _| 0),
            KeyCode::End => self.choose(watched, |_, last| last),
            _ => {}
        }
        false
    }

    /// Turns to a page, and from it back to the list.
    fn turn_to(&mut self, page: Page) {
        self.page = if self.page == page { Page::List } else { page };
    }

    fn choose(&mut self, watched: &Watched, go: fn(usize, usize) -> usize) {
        let rows = watched.sorted(self.sort, self.is_reversed);
        let Some(last) = rows.len().checked_sub(1) else { return };
        let place = go(self.place(watched), last);
        self.chosen = Some(rows[place].key.clone());
    }

    /// Where the chosen pool stands; the first if none was chosen, or that one is gone.
    pub(super) fn place(&self, watched: &Watched) -> usize {
        let rows = watched.sorted(self.sort, self.is_reversed);
        rows.iter().position(|row| Some(&row.key) == self.chosen.as_ref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{at, look, pool};
    use super::*;

    fn watched(endpoints: &[(&str, u64)]) -> Watched {
        let mut watched = Watched::default();
        watched.take(at(0), "", Ok(look(1.0, Vec::new(), "")));
        let pools =
            endpoints.iter().map(|(endpoint, acquires)| pool("default", endpoint, *acquires)).collect();
        watched.take(at(1), "", Ok(look(2.0, pools, "")));
        watched
    }

    fn press(view: &mut View, watched: &Watched, code: KeyCode) -> bool {
        view.press(KeyEvent::new(code, KeyModifiers::NONE), watched)
    }

    #[test]
    fn a_choice_stays_with_its_pool_in_whatever_order() {
        let (mut view, watched) = (View::default(), watched(&[("a", 10), ("b", 30), ("c", 20)]));
        press(&mut view, &watched, KeyCode::Down);
        assert_eq!((view.place(&watched), &*view.chosen.clone().unwrap().endpoint), (1, "b"));
        press(&mut view, &watched, KeyCode::Char('s'));
        assert_eq!((view.sort, view.place(&watched)), (Sort::Rate, 0), "b is the busiest");
        press(&mut view, &watched, KeyCode::Char('r'));
        assert_eq!(view.place(&watched), 2);
        press(&mut view, &watched, KeyCode::End);
        press(&mut view, &watched, KeyCode::Down);
        assert_eq!(view.place(&watched), 2, "there is no more");
        press(&mut view, &watched, KeyCode::Home);
        press(&mut view, &watched, KeyCode::Char('k'));
        assert_eq!(view.place(&watched), 0);
        let fewer = self::watched(&[("b", 1)]);
        assert_eq!(view.place(&fewer), 0, "the one that was chosen is gone");
        press(&mut view, &self::watched(&[]), KeyCode::Down);
    }

    #[test]
    fn pages_are_turned_to_and_back() {
        let (mut view, watched) = (View::default(), watched(&[("a", 10)]));
        for (code, page) in [
            (KeyCode::Enter, Page::Detail),
            (KeyCode::Char('?'), Page::Help),
            (KeyCode::Char('?'), Page::List),
            (KeyCode::Enter, Page::Detail),
            (KeyCode::Esc, Page::List),
        ] {
            assert!(!press(&mut view, &watched, code));
            assert_eq!(view.page, page, "{code:?}");
        }
        press(&mut view, &watched, KeyCode::Char('p'));
        assert!(view.is_paused);
        press(&mut view, &watched, KeyCode::Char(' '));
        assert!(!view.is_paused);
    }

    #[test]
    fn q_escape_and_ctrl_c_end() {
        let watched = watched(&[]);
        assert!(press(&mut View::default(), &watched, KeyCode::Char('q')));
        assert!(press(&mut View::default(), &watched, KeyCode::Esc));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert!(View::default().press(interrupt, &watched));
        assert!(!press(&mut View::default(), &watched, KeyCode::Char('c')));
    }
}

// What the server answers to a question; while the question is a newer one, the part that shows the answer is busy.
//
// Every part of the page that shows an answer says so by aria-busy: it is true from the moment in which a click has
// asked for something else until that is drawn. Screen readers wait for it, and so do the tests.

import { useEffect, useState } from "/vendor/hooks.js";

const NOTHING = { question: null, found: null, problem: "" };

// `ask` is called whenever `question`, a text, changes; answers to an older question are dropped. Until the new answer
// is there the old one stays in `found`, unless `fresh` leaves it out.
export function useAnswer(question, ask, { fresh = false } = {}) {
  const [answered, setAnswered] = useState(NOTHING);
  useEffect(() => {
    let current = true;
    const put = (part) => current && setAnswered((old) => ({ ...old, question, ...part }));
    ask().then((found) => put({ found, problem: "" }), (error) => put({ problem: error.message }));
    return () => {
      current = false;
    };
  }, [question]);
  const busy = answered.question !== question;
  return { found: busy && fresh ? null : answered.found, problem: busy ? "" : answered.problem, busy };
}

"use strict";
// The answers of all models by question: choices, filters and search, laid out a few questions at a time.
(() => {
  const data = JSON.parse(document.getElementById("answers-data").textContent);
  const { models, tasks, texts, media, questions } = data;
  const AT_ONCE = 20;
  const SHOWN_AT_FIRST = 400; // characters of an answer
  const ANY = -1;
  const element = (id) => document.getElementById(id);
  const [merge, other, task, search] = ["merge", "other", "task", "search"].map((each) => element(`answers-${each}`));
  const [list, count, more] = ["list", "count", "more"].map((each) => element(`answers-${each}`));
  const buttons = [...document.querySelectorAll("[data-filter]")];
  const filters = buttons.map((button) => button.dataset.filter);
  const inputs = models.flatMap((model, at) => (model.role === "base" || model.role === "expert" ? [at] : []));
  const others = inputs.length ? inputs : models.map((_, at) => at);
  let lowered; // the texts in small letters, once something is searched for
  let chosen = "all";
  let matches = [];
  let laidOut = 0;

  function make(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function choices(select, named, first) {
    for (const [value, name] of named) {
      const option = make("option", name);
      option.value = value;
      select.append(option);
    }
    select.value = first;
  }

  // Whether each model is right: true, false, or null where it was not asked or its task's values are no such measure.
  // It is found once for each question and kept behind its other parts, as each choice asks it of all questions.
  function verdicts([at, , , , answers]) {
    const value = (answer) => (answer && tasks[at].judged ? answer[2] : null);
    return answers.map((answer) => (value(answer) === null ? null : value(answer) >= data.right));
  }

  const right = (question, model) => question[6][model];

  // Whether what the merge is compared with is right: one model, or any of the base and the experts.
  function rightOfOther(question, merged, compared) {
    if (compared !== ANY) return right(question, compared);
    let found = null;
    for (const at of others) {
      if (at === merged && !inputs.length) continue;
      if (right(question, at)) return true;
      if (right(question, at) === false) found = false;
    }
    return found;
  }

  const tests = {
    all: () => true,
    lost: (question, merged, compared) =>
      right(question, merged) === false && rightOfOther(question, merged, compared) === true,
    won: (question, merged, compared) =>
      right(question, merged) === true && rightOfOther(question, merged, compared) === false,
    wrong: (question) => every(question, false),
    right: (question) => every(question, true),
    differ,
  };

  function every(question, wanted) {
    return question[6].includes(wanted) && !question[6].includes(!wanted);
  }

  function differ([, , , , answers]) {
    const first = answers.find(Boolean)[0];
    return answers.some((each) => each && each[0] !== first && texts[each[0]].trim() !== texts[first].trim());
  }

  // For each word that is searched for, the texts that have it; a question has it if one of its texts does.
  function searched() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return () => true;
    lowered ??= texts.map((text) => text.toLowerCase());
    const having = words.map((word) => lowered.map((text) => text.includes(word)));
    return ([, , text, reference, answers]) =>
      having.every((has) => has[text] || has[reference] || answers.some((each) => each && (has[each[0]] || has[each[1]])));
  }

  function update() {
    const [merged, compared, wanted] = [merge, other, task].map((each) => Number(each.value));
    const found = searched();
    const counts = filters.map(() => 0);
    matches = [];
    for (const question of questions) {
      if ((wanted !== ANY && question[0] !== wanted) || !found(question)) continue;
      filters.forEach((filter, at) => {
        if (!tests[filter](question, merged, compared)) return;
        counts[at] += 1;
        if (filter === chosen) matches.push(question);
      });
    }
    buttons.forEach((button, at) => {
      button.querySelector(".number-of").textContent = `(${counts[at]})`;
      button.setAttribute("aria-pressed", String(button.dataset.filter === chosen));
    });
    list.replaceChildren();
    laidOut = 0;
    layOut();
  }

  function layOut() {
    const merged = Number(merge.value);
    const compared = Number(other.value);
    for (const question of matches.slice(laidOut, laidOut + AT_ONCE)) list.append(article(question, merged, compared));
    laidOut = Math.min(laidOut + AT_ONCE, matches.length);
    more.hidden = laidOut === matches.length;
    count.textContent = matches.length ? `${laidOut} of ${matches.length} questions shown` : "No question is like this.";
  }

  function article(question, merged, compared) {
    const [at, document_, text, reference, , pictures] = question;
    const made = make("article");
    made.append(make("h3", `${tasks[at].name}, document ${document_}`));
    if (pictures.length) {
      made.classList.add("with-media");
      const box = make("div", undefined, "media");
      for (const each of pictures) box.append(...shown(media[each], document_));
      made.append(box);
    }
    const words = make("div");
    const asked = make("p", texts[text], "text question");
    asked.dir = "auto";
    if (texts[text].length > 1500) asked.tabIndex = 0;
    const wanted = make("p", undefined, "reference");
    const told = make("bdi", texts[reference], "text");
    wanted.append(make("span", "Reference: "), told);
    words.append(asked, wanted, table(question, merged, compared));
    made.append(words);
    return made;
  }

  function shown({ kind, note, parts }, document_) {
    const made = parts.map((part, number) => {
      if (kind === "audio") {
        const player = make("audio");
        player.controls = true;
        player.preload = "none";
        player.src = part;
        player.setAttribute("aria-label", `sound of document ${document_}`);
        return player;
      }
      const picture = make("img", undefined, kind === "video" ? "frame" : "");
      picture.src = part;
      picture.alt = kind === "video" ? `frame ${number + 1} of document ${document_}` : `picture of document ${document_}`;
      return picture;
    });
    if (note) made.push(make("p", parts.length ? note : `${kind} ${note}`, "note"));
    return made;
  }

  function table(question, merged, compared) {
    const made = make("table");
    const columns = make("colgroup");
    columns.append(make("col", undefined, "model"), make("col", undefined, "mark"), make("col"));
    const body = make("tbody");
    question[4].forEach((answer, model) => {
      const row = make("tr");
      if (model === merged || model === compared) row.classList.add("looked-at");
      const name = make("th", models[model].name);
      name.scope = "row";
      const role = models[model].role;
      if (role) name.append(" ", make("span", role, "note"));
      row.append(name, mark(question, model), cell(answer));
      body.append(row);
    });
    made.append(columns, body);
    return made;
  }

  function mark(question, model) {
    const is = right(question, model);
    const made = make("td", is === null ? "" : is ? "✓ right" : "✗ wrong", is === null ? "" : is ? "right" : "wrong");
    const value = question[4][model]?.[2];
    if (value !== null && value !== undefined && !(is !== null && (value === 0 || value === 1))) {
      made.append(make("span", ` ${Number(value.toPrecision(3))}`, "note"));
    }
    return made;
  }

  function cell(answer) {
    if (!answer) {
      const made = make("td");
      made.append(make("span", "not asked", "note"));
      return made;
    }
    const made = make("td");
    made.append(...long(texts[answer[0]]));
    if (texts[answer[1]]) made.append(make("p", `read as: ${texts[answer[1]]}`, "text note"));
    return made;
  }

  function long(text) {
    if (!text) return [make("span", "(empty)", "note")];
    const whole = make("p", text, "text");
    whole.dir = "auto";
    if (text.length <= SHOWN_AT_FIRST) return [whole];
    const details = make("details");
    const start = make("p", `${text.slice(0, SHOWN_AT_FIRST)}…`, "text");
    start.dir = "auto";
    whole.tabIndex = 0;
    details.append(make("summary", `all ${text.length} characters`), whole);
    details.addEventListener("toggle", () => (start.hidden = details.open));
    return [start, details];
  }

  const numbered = models.map((model, at) => [at, model.role ? `${model.name} (${model.role})` : model.name]);
  const merges = numbered.filter(([at]) => models[at].role === "merge");
  choices(merge, merges.length ? merges : numbered, data.merge);
  choices(other, [[ANY, inputs.length ? "any of base and experts" : "any other model"], ...numbered], ANY);
  choices(task, [[ANY, "all tasks"], ...tasks.map((each, at) => [at, each.name])], ANY);
  for (const select of [merge, other, task]) select.addEventListener("change", update);
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      chosen = button.dataset.filter;
      update();
    });
  }
  more.addEventListener("click", () => {
    const first = laidOut;
    layOut();
    list.children[first]?.querySelector("h3").scrollIntoView({ block: "nearest" });
  });
  new IntersectionObserver((seen) => {
    if (seen.some((each) => each.isIntersecting) && laidOut < matches.length) layOut();
  }, { rootMargin: "300px" }).observe(more);
  for (const question of questions) question.push(verdicts(question));
  update();
})();

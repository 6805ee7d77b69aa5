/* Where the components of one page speak to each other: on document, or, on a page with an equaliser of its own,
   on the element of class own-faders around them, whose id is the page's name in the address. What the equaliser
   said last stays in `told.queptPrediction`, for those that come later. This file goes before all others. */

const bus = element.closest(".own-faders") ?? document;
const told = bus === document ? window : bus;

/* The commands, one function for all: PROTOCOL.md lists them. Knows no model: everything about it comes from tte_model.h. */
#ifndef TTE_SERVE_H
#define TTE_SERVE_H

/* Sets the model up, with the state that was kept, if there is any; then serves the host for ever. */
_Noreturn void serve(void);

#endif

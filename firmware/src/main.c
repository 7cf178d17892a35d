#include "port.h"
#include "serve.h"

int main(void)
{
    link_open();
    counter_open();
    serve();
}
